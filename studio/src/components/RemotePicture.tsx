/** A picture of the service. It is fetched, because an `<img>` cannot send the API key. */
import { useEffect, useState } from "preact/hooks";
import { request } from "../api/send";

interface Props {
  path: string;
  alt: string;
  class?: string;
  /** Another number fetches the picture again. */
  revision?: number;
}

/** A picture's blob URL; null until it is there. `missing`: it could not be fetched, or there is none. */
interface BlobUrl {
  url: string | null;
  missing: boolean;
}

/** Fetches a picture, again for another path or revision. The old one is shown until the new one is there. */
export function useBlobUrl(path: string, revision = 0): BlobUrl {
  const [shown, setShown] = useState<BlobUrl>({ url: null, missing: false });
  useEffect(() => {
    const abort = new AbortController();
    request(path, { headers: { Accept: "image/png" }, signal: abort.signal })
      .then((response) => response.blob())
      .then(
        (blob) => setShown({ url: URL.createObjectURL(blob), missing: false }),
        () => abort.signal.aborted || setShown({ url: null, missing: true }),
      );
    return () => abort.abort();
  }, [path, revision]);
  const { url } = shown;
  useEffect(
    () => () => {
      if (url !== null) URL.revokeObjectURL(url);
    },
    [url],
  );
  return shown;
}

export function RemotePicture({ path, alt, class: name = "", revision = 0 }: Props) {
  const { url } = useBlobUrl(path, revision);
  return url === null ? <span class={`picture-missing ${name}`} /> : <img class={name} src={url} alt={alt} />;
}

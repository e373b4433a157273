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

/** Returns the blob URL of a picture; null until it is there, and if there is none. The old one stays meanwhile. */
export function useBlobUrl(path: string, revision = 0): string | null {
  const [url, setUrl] = useState<string | null>(null);
  useEffect(() => {
    const abort = new AbortController();
    request(path, { signal: abort.signal })
      .then((response) => response.blob())
      .then(
        (blob) => setUrl(URL.createObjectURL(blob)),
        () => undefined, // what has no picture shows none
      );
    return () => abort.abort();
  }, [path, revision]);
  useEffect(
    () => () => {
      if (url !== null) URL.revokeObjectURL(url);
    },
    [url],
  );
  return url;
}

export function RemotePicture({ path, alt, class: name = "", revision = 0 }: Props) {
  const url = useBlobUrl(path, revision);
  return url === null ? <span class={`picture-missing ${name}`} /> : <img class={name} src={url} alt={alt} />;
}

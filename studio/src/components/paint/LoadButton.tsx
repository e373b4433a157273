/** A button that asks for a picture file. */
import { useRef } from "preact/hooks";

interface Props {
  label: string;
  accept?: string;
  class?: string;
  disabled?: boolean;
  onFile: (file: File) => void;
}

export function LoadButton({ label, accept = "image/*", class: name = "", disabled = false, onFile }: Props) {
  const input = useRef<HTMLInputElement>(null);
  const choose = (event: Event & { currentTarget: HTMLInputElement }) => {
    const file = event.currentTarget.files?.[0];
    event.currentTarget.value = ""; // so that the same file can be chosen again
    if (file) onFile(file);
  };
  return (
    <>
      <button type="button" class={name} disabled={disabled} onClick={() => input.current?.click()}>
        {label}
      </button>
      <input ref={input} type="file" accept={accept} hidden aria-label={label} onChange={choose} />
    </>
  );
}

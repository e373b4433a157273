/** Asks for the API key. It is kept in this browser tab's session only. */
import { enterKey } from "../api/key";

export function KeyPrompt({ detail }: { detail: string }) {
  const onSubmit = (event: SubmitEvent) => {
    event.preventDefault();
    const entered = new FormData(event.currentTarget as HTMLFormElement).get("key");
    if (typeof entered === "string" && entered.trim() !== "") enterKey(entered.trim());
  };
  return (
    <form class="key-prompt" onSubmit={onSubmit}>
      <h2>This service needs a key</h2>
      <p class="muted">{detail}</p>
      <label class="field">
        <span class="field-name">API key</span>
        <input type="password" name="key" autoComplete="off" spellcheck={false} required ref={(input) => input?.focus()} />
      </label>
      <p class="muted">It is kept until this tab is closed, and sent to this service only.</p>
      <button type="submit" class="primary">
        Use this key
      </button>
    </form>
  );
}

/** The feeds of the runs that are shown. */
import { useEffect, useState } from "preact/hooks";
import { RunFeed } from "./feed";

/** Returns a feed for each run. A run that is no longer shown is no longer followed. */
export function useFeeds(ids: readonly string[]): readonly RunFeed[] {
  const [feeds, setFeeds] = useState<readonly RunFeed[]>([]);
  useEffect(() => {
    setFeeds((known) => {
      for (const feed of known) if (!ids.includes(feed.id)) feed.stop();
      return ids.map((id) => known.find((feed) => feed.id === id) ?? new RunFeed(id));
    });
  }, [ids.join()]);
  useEffect(
    () => () =>
      setFeeds((known) => {
        for (const feed of known) feed.stop();
        return [];
      }),
    [],
  );
  return feeds;
}

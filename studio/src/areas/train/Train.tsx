/** Train: the form that starts a training and the list of trainings; one training that is followed; or several compared. */
import { useEffect } from "preact/hooks";
import { address } from "../../router";
import { datasets } from "../../state/datasets";
import { poll } from "../../state/resource";
import { Comparison } from "./Comparison";
import { RunDetail } from "./RunDetail";
import { RunList } from "./RunList";
import { families, shownRuns, trainings } from "./runs";
import "./train.css";
import { TrainForm } from "./TrainForm";
import { useFeeds } from "./useFeeds";

export default function Train() {
  const runs = shownRuns(address.value.params);
  const feeds = useFeeds(runs);
  useEffect(() => {
    void families.reload();
    void datasets.reload();
    return poll(
      () => trainings.reload(),
      () => ((trainings.data ?? []).some(({ finished_at }) => finished_at === null) ? 2 : 10),
    );
  }, []);
  const [first] = feeds;
  return (
    <div class="page">
      {runs.length === 0 && (
        <>
          <TrainForm />
          <RunList />
        </>
      )}
      {runs.length === 1 && first && <RunDetail key={first.id} feed={first} />}
      {runs.length > 1 && <Comparison feeds={feeds} />}
    </div>
  );
}

/** Stands for an area that is not there yet. */
import { Empty } from "../../components/Empty";

export default function Soon() {
  return <Empty title="Not here yet">The HTTP interface can do this already; see the documentation at /docs.</Empty>;
}

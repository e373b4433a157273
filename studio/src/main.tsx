/** Starts the page. */
import { render } from "preact";
import { App } from "./App";
import { startRouter } from "./router";
import { startService } from "./state/service";
import { startShortcuts } from "./state/shortcuts";
import { watchAppearance } from "./state/theme";
import "./styles/tokens.css";
import "./styles/base.css";
import "./styles/controls.css";
import "./styles/frame.css";

const root = document.getElementById("app");
if (root === null) throw new Error("index.html has no element #app");
startRouter();
startShortcuts();
watchAppearance();
startService();
render(<App />, root);

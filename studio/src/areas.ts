/** The nine areas of the page, in the order of the rail. Each is loaded when it is first shown. */
import type { ComponentType } from "preact";
import type { Operation } from "./api/types";

export type AreaId = "draw" | "plane" | "paint" | "enlarge" | "train" | "data" | "models" | "jobs" | "compare";

export interface Area {
  id: AreaId;
  label: string;
  /** What the area's model must be able to do; the header offers the models that can. Without it, no choice. */
  operation?: Operation;
  /** A model that can do this, too, comes first. */
  prefers?: Operation;
  load: () => Promise<{ default: ComponentType }>;
}

export const AREAS: readonly Area[] = [
  { id: "draw", label: "Draw", operation: "samples", load: () => import("./areas/draw/Draw") },
  { id: "plane", label: "Plane", operation: "decodings", prefers: "manifold", load: () => import("./areas/plane/Plane") },
  { id: "paint", label: "Paint", load: () => import("./areas/paint/Paint") },
  { id: "enlarge", label: "Enlarge", operation: "upscales", load: () => import("./areas/enlarge/Enlarge") },
  { id: "train", label: "Train", load: () => import("./areas/train/Train") },
  { id: "data", label: "Data", load: () => import("./areas/data/Data") },
  { id: "models", label: "Models", load: () => import("./areas/models/Models") },
  { id: "jobs", label: "Jobs", load: () => import("./areas/jobs/Jobs") },
  { id: "compare", label: "Compare", load: () => import("./areas/compare/Compare") },
];

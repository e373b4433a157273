/** The service's schemas by short names. `npm run types` generates them from its OpenAPI description. */
import type { components } from "./schema";

type Schemas = components["schemas"];

export type Model = Schemas["ModelResponse"];
export type Version = Schemas["VersionResponse"];
export type Figure = Schemas["Figure"];
export type ImageSize = Schemas["ImageSize"];
export type Job = Schemas["JobResponse"];
export type JobStatus = Job["status"];
export type Problem = Schemas["Problem"];
export type FieldError = Schemas["FieldError"];
export type Readiness = Schemas["ReadinessResponse"];
export type Dataset = Schemas["DatasetResponse"];
export type DatasetImage = Schemas["DatasetImageResponse"];
export type DatasetImagePage = Schemas["DatasetImagePage"];
export type Family = Schemas["FamilyResponse"];
export type Training = Schemas["TrainingResponse"];
export type TrainingBody = Schemas["TrainingBody"];
export type EpochMetrics = Schemas["EpochMetrics"];
export type Estimate = Schemas["EstimateResponse"];
export type TrainingPreview = Schemas["PreviewResponse"];

/** The JSON result of each operation, by the last part of its path. */
export interface Results {
  samples: Schemas["SamplesResponse"];
  manifold: Schemas["ManifoldResponse"];
  decodings: Schemas["DecodingsResponse"];
  encodings: Schemas["EncodingsResponse"];
  reconstructions: Schemas["ReconstructionsResponse"];
  interpolations: Schemas["InterpolationsResponse"];
  inpaintings: Schemas["InpaintingsResponse"];
  upscales: Schemas["UpscalesResponse"];
  energies: Schemas["EnergiesResponse"];
  likelihoods: Schemas["LikelihoodsResponse"];
}

export type Operation = keyof Results;

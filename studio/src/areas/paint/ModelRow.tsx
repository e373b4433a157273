/** What one model says about the picture: reconstruction, energy, likelihood and encoding. */
import { ProblemLine } from "../../components/ProblemLine";
import { pngUrl } from "../../lib/files";
import { number, withUnit } from "../../lib/format";
import { EncodingStrip } from "./EncodingStrip";
import type { Reader } from "./readings";

const PICTURE = 84;

export function ModelRow({ reader }: { reader: Reader }) {
  const { model } = reader;
  const { energies, reconstruction, encoding, likelihood, problem } = reader.reading.value;
  const energy = energies?.energies[0];
  const percentile = energies?.percentile?.[0];
  const scale = Math.max(1, Math.floor(PICTURE / model.image.width));
  return (
    <article class="reading" aria-label={model.name}>
      <div class="reading-picture" style={{ width: `${model.image.width * scale}px`, height: `${model.image.height * scale}px` }}>
        {reconstruction === undefined ? (
          <span class="muted small">{"reconstructions" in model.operations ? "" : "no recon\u00adstruction"}</span>
        ) : (
          <img class="pixelated" src={pngUrl(reconstruction)} width={model.image.width * scale} height={model.image.height * scale} alt={`Reconstruction by ${model.name}`} />
        )}
      </div>
      <div class="reading-text">
        <h3>{model.name}</h3>
        <dl class="reading-figures">
          {"energies" in model.operations && (
            <div>
              <dt class="muted">energy</dt>
              <dd>
                {energy === undefined || energy === null ? "—" : withUnit(Number(energy.toFixed(2)), energies?.unit)}
                {percentile !== undefined && percentile !== null && <span class="muted"> higher than {Math.round(percentile)} % of training</span>}
              </dd>
            </div>
          )}
          {"likelihoods" in model.operations && (
            <div>
              <dt class="muted">log-likelihood</dt>
              <dd>{likelihood ? likelihoodText(likelihood) : "…"}</dd>
            </div>
          )}
        </dl>
        {encoding && <EncodingStrip encoding={encoding} />}
        <ProblemLine problem={problem} />
      </div>
    </article>
  );
}

function likelihoodText({ log_p, standard_error, unit }: { log_p: (number | null)[]; standard_error?: (number | null)[] | null | undefined; unit?: string | null | undefined }): string {
  const [value, error] = [log_p[0], standard_error?.[0]];
  if (value === undefined || value === null) return "—";
  const digits = error ? Math.max(0, Math.min(2, Math.ceil(-Math.log10(error)))) : 1;
  const text = value.toFixed(digits).replace("-", "−");
  return `${text}${error ? ` ± ${number(error, 1)}` : ""} ${unit ?? ""}`;
}

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { defineConfig, type Plugin } from "vite";

const OUTPUT = "dist";
const ASSETS = `${OUTPUT}/assets`;

/** Writes NAME.gz beside each script and style, so that the service compresses nothing while it runs. */
function gzip(): Plugin {
  return {
    name: "gzip",
    apply: "build",
    closeBundle() {
      for (const name of readdirSync(ASSETS).filter((file) => /\.(js|css|svg)$/.test(file))) {
        writeFileSync(`${ASSETS}/${name}.gz`, gzipSync(readFileSync(`${ASSETS}/${name}`), { level: 9 }));
      }
    },
  };
}

export default defineConfig({
  plugins: [gzip()],
  build: {
    outDir: OUTPUT,
    target: "es2022",
    // the Content-Security-Policy allows neither inline scripts nor `data:` URLs of scripts and styles
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  // `npm run dev` takes everything but the page from a service on this machine
  server: { proxy: Object.fromEntries(["/v1", "/readyz", "/openapi.json"].map((path) => [path, "http://127.0.0.1:8000"])) },
});

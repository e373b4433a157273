// `orval` generates one file of types and functions.

/** Leaves JSON alone where a response has other types too: orval would read all of them as a Blob. */
function onlyJson(description) {
  for (const methods of Object.values(description.paths)) {
    for (const operation of Object.values(methods)) {
      for (const response of Object.values(operation.responses)) {
        const json = response.content?.["application/json"];
        if (json) response.content = { "application/json": json };
      }
    }
  }
  return description;
}

export default {
  reverie: {
    input: { target: "../openapi.json", override: { transformer: onlyJson } },
    output: {
      baseUrl: { runtime: "process.env.REVERIE_URL" },
      client: "fetch",
      mode: "single",
      override: {
        // its own code for forms does not type-check where a field is one of several objects, as `options` is
        formData: { path: "./form-data.ts", name: "toFormData" },
        splitByContentType: true,
      },
      target: "generated.ts",
    },
  },
};

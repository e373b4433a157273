// Run a package of esrgan with tfjs's wasm backend on one thread:
//   node esrgan.cjs MODULES NAME SCALE JOBS
// JOBS is JSON, [{low, high, width, height}]: files of raw RGB bytes in and out.
// Prints the seconds of each job and the peak memory, as JSON.
const fs = require('fs')
const path = require('path')
const [modules, name, scale, jobs] = process.argv.slice(2)
const from = (package) => require(path.join(modules, package))
const tf = from('@tensorflow/tfjs')
const wasm = from('@tensorflow/tfjs-backend-wasm')

class MultiplyBeta extends tf.layers.Layer {
  static className = 'MultiplyBeta'
  constructor (config) { super(config); this.beta = config.beta ?? 0.2 }
  call (inputs) { return tf.mul(Array.isArray(inputs) ? inputs[0] : inputs, this.beta) }
}

const shuffle = (times) => {
  const layer = class extends tf.layers.Layer {
    static className = `PixelShuffle${times}x`
    computeOutputShape ([batch, height, width]) { return [batch, height && height * times, width && width * times, 3] }
    call (inputs) { return tf.depthToSpace(Array.isArray(inputs) ? inputs[0] : inputs, times, 'NHWC') }
  }
  return layer
}

async function main () {
  tf.serialization.registerClass(MultiplyBeta)
  tf.serialization.registerClass(shuffle(Number(scale)))
  wasm.setWasmPaths(path.join(modules, '@tensorflow/tfjs-backend-wasm/dist/'))
  wasm.setThreadsCount(1)
  await tf.setBackend('wasm')
  await tf.ready()
  const folder = path.join(modules, '@upscalerjs', name, 'models', `x${scale}`)
  const described = JSON.parse(fs.readFileSync(path.join(folder, 'model.json')))
  const files = described.weightsManifest.flatMap((group) => group.paths)
  const weights = Buffer.concat(files.map((file) => fs.readFileSync(path.join(folder, file))))
  const model = await tf.loadLayersModel(tf.io.fromMemory({
    modelTopology: described.modelTopology,
    weightSpecs: described.weightsManifest.flatMap((group) => group.weights),
    weightData: weights.buffer.slice(weights.byteOffset, weights.byteOffset + weights.byteLength)
  }))
  const range = name === 'esrgan-thick' ? 255 : 1 // the one works in 0 … 1, the others in 0 … 255
  const told = []
  for (const job of JSON.parse(jobs)) {
    const bytes = fs.readFileSync(job.low)
    const before = process.cpuUsage()
    const began = process.hrtime.bigint()
    const high = tf.tidy(() => {
      const low = tf.tensor4d(Float32Array.from(bytes, (one) => one / range), [1, job.height, job.width, 3])
      return tf.clipByValue(tf.round(tf.mul(model.predict(low), range)), 0, 255)
    })
    const found = Uint8Array.from(await high.data())
    const used = process.cpuUsage(before)
    told.push({ wall_s: Number(process.hrtime.bigint() - began) / 1e9, cpu_s: (used.user + used.system) / 1e6 })
    high.dispose()
    fs.writeFileSync(job.high, found)
  }
  console.log(JSON.stringify({ took: told, peak_mib: process.resourceUsage().maxRSS / 1024 }))
}

main()

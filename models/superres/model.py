"""Define the super-resolution model: networks, operation `upscale`, training and metrics.

This file has more than 400 lines because it is the part of the family that needs all its networks.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from models.kit import features, resize, spectrum
from models.kit.figures import Figures, Report, no_report
from models.kit.operations import Continuation, Result, State, describe
from models.kit.optimizers import OptimizerStep
from models.kit.row_streams import CHOICE, LATENT, RowStreams
from models.kit.scattering import Scattering
from models.kit.shapes import Float, Images, Int64, PerImage, Tensor
from models.superres import denoiser, patches, regression, statistics
from models.superres.config import Config, UpscaleOptions
from models.superres.descent import Descent, EnergyFunction, descend, start_descent
from models.superres.regression import Upscaler
from models.superres.statistics import ChannelStds, Predictor, Statistics

HighResolution = Float[Tensor, "B C sH sW"]

RESIDUAL_STD_RATE = 0.02  # of the running mean of `residual_std`
CONSISTENCY_WEIGHT = 0.01  # of (U(y) − x)² in squared levels, added to the energy
# See docs/decisions.md#a-filter-shapes-the-detail-of-the-amortised-network
FILTER_PATCHES = 128  # training patches from whose spectra `finalize` computes the detail filter
DESCENT_STEPS_PER_CALL = 1


class Model(nn.Module):
    """A super-resolution model: a regression network and, for the statistics, three more networks.

    The three exist only with the objective "statistics": the generator, which makes an image of low
    energy in one pass; the scattering, whose wavelets start fixed and are then trained as part of Ψ
    in Bruna et al.; and the predictor Φ. With `denoiser_blocks` there is a network that cleans the
    input; the objective "denoiser" trains this network alone. Methods have the parameter `images`:
    tiles (B, C, H, W) in 0 … 1 at low resolution. A tile has margins of `config.margin` pixels,
    unless a method says otherwise; margins are context, and the enlarged image lacks them.
    """

    OPTIMIZED_MODULES: tuple[str, ...]
    spread: Tensor  # `residual_std` of all parts, concatenated; the name is stored in checkpoints

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.width != config.height or config.height <= 2 * config.margin:
            raise ValueError(f"a tile of {config.height}×{config.width} must be square and wider than two margins")
        self.config = config
        self.OPTIMIZED_MODULES = ()  # the regression is trained by `loss`
        self.regression = Upscaler(config.channels, config.features, config.blocks, config.scales)
        if config.denoiser_blocks:
            self.denoiser = denoiser.Denoiser(config.channels, config.denoiser_features, config.denoiser_blocks)
        if config.objective == "denoiser":
            if not config.denoiser_blocks:
                raise ValueError("the objective denoiser needs denoiser_blocks of at least 1")
            self.OPTIMIZED_MODULES = ("denoiser",)
        self.feature_networks: list[features.Features] = []  # a list, so that its weights are not the model's
        if config.objective == "statistics":
            self.OPTIMIZED_MODULES = ("predictor", "generator", "scattering")
            self.generator = Upscaler(
                config.channels, config.features, config.blocks, config.scales, noise=config.noise
            )
            self.scattering = Scattering(config.wavelet_scales, config.wavelet_angles)
            self.widths = (self.scattering.channels, *(statistics.FEATURE_CHANNELS if config.network else ()))
            self.predictor = Predictor(
                config.channels, config.features, config.predictor_blocks, config.scales, self.widths
            )
            self.register_buffer("spread", torch.zeros(sum(self.widths)))
            if config.detail_radius:
                size = 2 * config.detail_radius + 1
                for scale in config.scales:  # the identity filter, until `finalize`
                    taps = torch.zeros(size, size)
                    taps[config.detail_radius, config.detail_radius] = 1.0
                    self.register_buffer(f"taps_{scale}", taps)

    def warm_start(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights that have the same name and shape as weights of this model.

        If the generator's weights are missing, the generator becomes a copy of the regression.
        Raises ValueError if weights of the regression are missing or have another shape.
        """
        own = self.state_dict()
        usable = {
            name: value
            for name, value in weights.items()
            if name in own and own[name].shape == value.shape and not name.startswith("taps_")
        }
        missing = [name for name in own if name.startswith("regression.") and name not in usable]
        if missing:
            raise ValueError(f"training starts from a regression of the same size: {missing[0]} is missing")
        for name in own:
            regression_name = f"regression.{name.removeprefix('generator.')}"
            if name.startswith("generator.") and name not in usable and regression_name in usable:
                usable[name] = usable[regression_name]
        self.load_state_dict({**own, **usable})

    def initialise(self, rows: RowStreams) -> None:
        """Draw weights from He's normal distribution, and set biases to zero.

        Weights at the end of a residual branch have a tenth of that standard deviation. The weights
        of the noise input are `INITIAL_NOISE`: at zero, their gradient would vanish on average. The
        wavelets of the scattering are left as they are.
        """
        ends = ("second.weight", "end.weight", "scattering.weight", "halves.weight", "quarters.weight", "hs.weight")
        with torch.no_grad():
            for number, (name, parameter) in enumerate(self.named_parameters()):
                if name.startswith("scattering."):  # already Morlet wavelets
                    continue
                if parameter.ndim < 2:
                    parameter.fill_(regression.INITIAL_NOISE if name.endswith(".noise") else 0.0)
                    continue
                ends_residual = ".tails." in name or name.endswith(ends)
                std = (2.0 / parameter[0].numel()) ** 0.5 * (0.1 if ends_residual else 1.0)
                noise = rows.normals(parameter.numel(), number, 1, LATENT)[0, 0]
                parameter.copy_(noise.view(parameter.shape).to(parameter.device) * std)

    def operations(self) -> dict[str, Any]:
        """Return the description of the operation `upscale` in the format of the model card.

        It is keyed by the operation's name and has the `margin` of a tile in pixels. For a model
        with another objective than "statistics", the option `method` does not allow "statistics".
        With a denoiser there is the option `denoise`, and `option_margins` has the pixels by which
        the margin grows for this option.
        """
        described = describe(self)
        described["upscale"]["margin"] = self.config.margin
        properties = described["upscale"]["options"]["properties"]
        if self.config.denoiser_blocks:
            described["upscale"]["option_margins"] = {"denoise": denoiser.MARGIN}
        else:
            del properties["denoise"]
        if self.config.objective != "statistics":
            method = properties["method"]
            method["enum"] = [name for name in method["enum"] if name != "statistics"]
            method["default"] = "mse"
        return described

    # Operation

    # See docs/decisions.md#tiles-fit-the-picture
    @torch.no_grad()
    def upscale(
        self,
        images: Images,
        rows: RowStreams,
        options: UpscaleOptions,
        state: State = None,
        margins: tuple[int, int] | None = None,
    ) -> Result:
        """Enlarge tiles by the factor s = `scale` and remove their margins.

        `margins` are the margins m and n of the vertical and the horizontal axis, in pixels of
        `images`; None means `config.margin`. Returns `images` (B, C, s·(H − 2m), s·(W − 2n)) in 0 …
        1. If the model has another objective than "statistics", the method "statistics" means
        "mse". With `denoise`, the tiles are cleaned first. Total variation and the gradient descent
        run in several calls; every call but the last returns a `Continuation`. `state` is None in
        the first call, later the state of the previous `Continuation`. `rows` draws the generator's
        noise, if it has a noise input. Raises ValueError for a scale that the model does not have,
        or for `denoise` without a denoiser.
        """
        if options.scale not in self.config.scales:
            raise ValueError(f"scale must be one of {', '.join(map(str, self.config.scales))}, not {options.scale}")
        m, n = margins or (self.config.margin, self.config.margin)
        result = self._upscale_cleaned(images, rows, options, state)
        if isinstance(result, Continuation):
            return result
        height, width = result.shape[2:]
        m, n = m * options.scale, n * options.scale
        return {"images": result[:, :, m : height - m, n : width - n].clamp(0.0, 1.0)}

    def _upscale_cleaned(
        self, images: Images, rows: RowStreams, options: UpscaleOptions, state: State
    ) -> HighResolution | Continuation:
        """Enlarge tiles, which are first cleaned if the options say so; keep their margins."""
        if options.denoise == 0.0:
            return self._upscale(images, rows, options, state)
        clean = self.denoise(images, options.denoise) if state is None else state["clean"]
        others = None if state is None else {name: value for name, value in state.items() if name != "clean"}
        result = self._upscale(clean, rows, options, others)
        if isinstance(result, Continuation):
            return dataclasses.replace(result, state={**result.state, "clean": clean})
        return result

    def _upscale(
        self, images: Images, rows: RowStreams, options: UpscaleOptions, state: State
    ) -> HighResolution | Continuation:
        """Enlarge tiles, with their margins, by the method `options.method`."""
        scale = options.scale
        regression_only = self.config.objective != "statistics"
        method = "mse" if regression_only and options.method == "statistics" else options.method
        if method == "tv":
            return regression.invert_by_total_variation(images, scale, state)
        if method == "statistics" and options.inference == "descent":
            return self._upscale_by_descent(images, options, state)
        if method == "bicubic":
            return regression.interpolate_bicubic(images, scale)
        if method == "mse":
            return self.regress(images, scale, ensemble=options.ensemble)
        return self.sharpen(images, scale, options.fidelity, rows)

    def _upscale_by_descent(self, low: Images, options: UpscaleOptions, state: State) -> HighResolution | Continuation:
        """Enlarge tiles by a gradient descent of the energy from the regression's estimate.

        The first call (`state` is None) computes the state before the first gradient step; every
        later call takes one step. The last call returns the images, every other call a
        `Continuation`.
        """
        scale, (height, width) = options.scale, low.shape[2:]
        # the predictor takes multiples of four pixels
        low = functional.pad(low, (0, -width % 4, 0, -height % 4), mode="replicate")
        if state is None:
            estimate, done = self.regress(low, scale), low.new_zeros(len(low))
            descent = start_descent(self.energy_function(low, estimate, scale), torch.zeros_like(estimate[:, :1]))
        else:
            estimate, done = state["estimate"], state["done"] + DESCENT_STEPS_PER_CALL
            before = Descent(**{field.name: state[field.name] for field in dataclasses.fields(Descent)})
            descent = descend(before, self.energy_function(low, estimate, scale), DESCENT_STEPS_PER_CALL)
        if float(done.max()) >= options.steps:
            high = self._project(estimate + statistics.remove_grid_pattern(descent.detail, scale), low, scale)
            return torch.lerp(high, estimate, options.fidelity)[:, :, : height * scale, : width * scale]
        progress = (float(done.max()) + 0.5) / (options.steps + 1)
        return Continuation({"estimate": estimate, "done": done, **vars(descent)}, progress)

    # Estimates

    def denoise(self, low: Images, strength: float) -> Images:
        """Return images without the noise and the compression artefacts of up to `strength`, 0 … 1.

        Raises ValueError if the model has no denoiser.
        """
        if not self.config.denoiser_blocks:
            raise ValueError("this model cannot denoise: `denoise` must be 0")
        clean: Images = self.denoiser(low, low.new_full((len(low),), strength))
        return clean.clamp(0.0, 1.0)

    def regress(self, low: Images, scale: int, *, ensemble: bool = False) -> HighResolution:
        """Return the regression's estimate R(x), projected so that its downsampling is x = `low`.

        With `ensemble` it is the mean of the estimates under the eight symmetries of the square.
        """
        if not ensemble:
            return self._project(self.regression(low, scale), low, scale)
        total = torch.zeros((), device=low.device)
        for quarters in range(4):
            for mirrored in (False, True):
                rotated = torch.rot90(low, quarters, (2, 3))
                high = self.regression(rotated.flip(3) if mirrored else rotated, scale)
                total = total + torch.rot90(high.flip(3) if mirrored else high, -quarters, (2, 3))
        return self._project(total / 8.0, low, scale)

    def sharpen(self, low: Images, scale: int, fidelity: float = 0.0, rows: RowStreams | None = None) -> HighResolution:
        """Return a mixture of the generator's image and the regression's estimate.

        `fidelity` is the share of the regression: 0 gives the generator's image, 1 the
        regression's. `rows` draws the noise of a generator that has a noise input; without `rows`
        the noise is zero.
        """
        estimate = self.regress(low, scale)
        noise = self._noise(low, rows)
        return self._generate(low, estimate, scale, 1.0 - fidelity, noise) if fidelity < 1.0 else estimate

    def _noise(self, low: Images, rows: RowStreams | None) -> Float[Tensor, "B 1 h w"] | None:
        """Return white noise for the generator's input, one number per pixel of `low`.

        Returns None if the generator has no noise input, or if `rows` is None.
        """
        if rows is None or not self.config.noise:
            return None
        height, width = low.shape[2:]
        return rows.normal(height * width, LATENT).view(-1, 1, height, width)

    def _generate(
        self,
        low: Images,
        estimate: HighResolution,
        scale: int,
        share: float = 1.0,
        noise: Float[Tensor, "B 1 h w"] | None = None,
    ) -> HighResolution:
        """Return the regression's `estimate` plus the generator's residual image times `share`.

        If the config has a filter for residual images, the residual image is filtered. The sum is
        projected onto the images whose downsampling is `low`.
        """
        detail = self._generator_detail(low, estimate, scale, noise)
        if self.config.detail_radius:
            detail = spectrum.apply_filter(detail, self.get_buffer(f"taps_{scale}"))
        return self._project(estimate + share * detail, low, scale)

    def _generator_detail(
        self, low: Images, estimate: HighResolution, scale: int, noise: Float[Tensor, "B 1 h w"] | None = None
    ) -> HighResolution:
        """Return the residual image that the generator adds to the regression's `estimate`.

        Patterns with the period of the low-resolution pixels are removed from the residual image;
        the filter of residual images is not applied.
        """
        return statistics.remove_grid_pattern(self.generator(low, scale, noise) - estimate, scale)

    def _project(self, high: HighResolution, low: Images, scale: int) -> HighResolution:
        """Return the image nearest to `high` whose downsampling is `low`, almost in 0 … 1.

        The image is projected, clipped to 0 … 1, and projected again, because clipping changes its
        downsampling.
        """
        project = resize.projection(*low.shape[2:], scale, low.device)
        return project(project(high.float(), low).clamp(0.0, 1.0), low)

    # The statistics

    def statistics(self, high: Images) -> Statistics:
        """Return the statistics Ψ of high-resolution images in float32, a list of feature maps.

        The first is the scattering of the luminance. If the feature network is loaded, its stages
        follow, normalised to unit length over their channels, as in LPIPS.
        """
        with torch.autocast(high.device.type, enabled=False):
            stages = [stage for network in self.feature_networks for stage in network(high)]
            normalised = [stage / (stage.square().sum(1, keepdim=True) + 1e-6).sqrt() for stage in stages]
            return [*self._scattering_statistics(high), *normalised]

    def _scattering_statistics(self, high: Images) -> Statistics:
        with torch.autocast(high.device.type, enabled=False):
            return [self.scattering(regression.luminance(high))[:, 0]]

    def load_feature_network(self) -> "Model":
        """Load the pretrained feature network of Ψ, if the config has one; return this model.

        Raises ValueError if the file with the network's weights is missing.
        """
        if self.config.network and not self.feature_networks:
            self.feature_networks = [statistics.load_features().to(self.spread.device)]
        return self

    def residual_stds(self) -> ChannelStds:
        """Return the standard deviation of Ψ(y) − Ψ(R(x)) in each channel: (C,) per feature map.

        R(x) is the regression's estimate of y. The deviations are running means over the training's
        steps.
        """
        return list(torch.split(self.spread, list(self.widths)))

    def predict(self, estimate: Images, own: Statistics, scale: int) -> Statistics:
        """Return Φ(x), a prediction of the statistics of the true images (Bruna et al., §3).

        `estimate` is the regression's estimate of the true images, and `own` has the statistics of
        `estimate`. The result has as many feature maps as `own`.
        """
        predicted: Statistics = self.predictor(estimate, own, self.residual_stds(), scale)
        return predicted

    def energy_function(
        self, low: Images, estimate: HighResolution, scale: int, target: Statistics | None = None
    ) -> EnergyFunction:
        """Return the function that maps residual images (B, 1, H, W) to energies (B,).

        An image is `estimate` plus its residual image, of which patterns with the period of the
        low-resolution pixels are removed. Its energy is the distance of its statistics Ψ
        (scattering coefficients and feature maps) from those that the predictor Φ computes from
        `estimate`, plus a penalty: the weighted mean squared difference between `low` and the image
        after bicubic downsampling. With `target`, Φ is not used: the distance is that of the
        image's scattering coefficients from those in `target`.
        """
        statistics_of = self.statistics if target is None else self._scattering_statistics
        predicted = self.predict(estimate, self.statistics(estimate), scale) if target is None else target
        std, u = self.residual_stds(), resize.bicubic(*low.shape[2:], scale, low.device)

        def energy_of(detail: Float[Tensor, "B 1 H W"]) -> PerImage:
            high = estimate + statistics.remove_grid_pattern(detail, scale)
            return statistics.energy(
                predicted, statistics_of(high), std
            ) + CONSISTENCY_WEIGHT * regression.squared_error(u(high), low)

        return energy_of

    # Training

    def loss(self, images: Images, rows: RowStreams, epoch: int = 0) -> PerImage:
        """Return the regression's error (B,) on high-resolution patches (B, C, H, W).

        Each row draws its scale; for a smaller scale only a part of the patch is used. Before the
        epoch `squared_from` the error is the mean absolute error in grey levels, from then on the
        mean squared error (Bruna et al., §2).
        """
        lows, highs, indices = patches.draw_by_scale(images, rows, self.config)
        losses = images.new_empty(len(images))
        error = regression.squared_error if epoch >= self.config.squared_from else regression.absolute_error
        for scale, features_of_scale in self._trunk_by_scale(lows, indices).items():
            estimate = self.regression.tail(features_of_scale, lows[scale], scale)
            losses = losses.index_copy(0, indices[scale], error(estimate, highs[scale]))
        return losses

    def _trunk_by_scale(
        self, lows: dict[int, Float[Tensor, "_n C _h _w"]], indices: dict[int, Int64[Tensor, "_n"]]
    ) -> dict[int, Float[Tensor, "_n F _h _w"]]:
        """Return the trunk's features of the crops `lows`, keyed by scale.

        Crops of one size go through the trunk together, in the order of their images, `indices`.
        """
        if self.config.whole_patches:
            return {scale: self.regression.trunk(low) for scale, low in lows.items()}
        order = torch.cat([indices[scale] for scale in lows])
        features_of_rows = self.regression.trunk(torch.cat(list(lows.values()))[order.argsort()])
        return {scale: features_of_rows[indices[scale]] for scale in lows}

    def training_steps(self, images: Images, rows: RowStreams, epoch: int = 0) -> Iterator[OptimizerStep]:
        """Yield the optimizer steps of the predictor Φ, the generator and the scattering.

        With the objective "denoiser", the only step is that of the denoiser.

        The predictor is trained toward the statistics Ψ(y) of the true images, the generator to
        lower the energy (Bruna et al., §3). From the epoch `tune_from` on, in a share `tune_share`
        of the steps, the scattering is trained by a positive and a negative phase (§4).

        Half of the generator's loss has the prediction Φ(x) as target, and half Ψ(y), whose mean Φ
        estimates: once Φ has converged, both gradients have the same mean.

        `rows` are the random streams of the images; the first row draws the scale of all images in
        the batch, and whether the scattering is trained. The energy divides each channel by the
        standard deviation of Ψ(y) − Ψ(R(x)): this method updates the running mean of these
        deviations.
        """
        if self.config.objective == "denoiser":
            yield self._denoiser_step(images, rows, epoch)
            return
        self.load_feature_network()
        low, high, scale = patches.draw_pair(images, rows, self.config)
        with torch.no_grad():
            estimate = self.regress(low, scale)
            target, own = self.statistics(high), self.statistics(estimate)
            current = torch.cat(statistics.residual_std(own, target))
            has_mean = bool(self.spread.any())
            self.spread.copy_(torch.lerp(self.spread, current, RESIDUAL_STD_RATE) if has_mean else current)
        std = self.residual_stds()
        predicted = self.predict(estimate, own, scale)
        prediction_error = statistics.energy(predicted, target, std)
        yield OptimizerStep(
            "predictor", prediction_error, {"energy_of_regression": statistics.energy(own, target, std)}
        )
        predicted = [part.detach() for part in predicted]
        if self.config.amortise:
            generated = self._generate(low, estimate, scale, noise=self._noise(low, rows))
            actual = self.statistics(generated)
            losses = 0.5 * (statistics.energy(predicted, actual, std) + statistics.energy(target, actual, std))
            error, chroma = regression.squared_error(generated, high), regression.chroma_error(generated, estimate)
            losses = losses + self.config.pixels * error + self.config.colour * chroma
            metrics = {"error_of_generator": error, "error_of_regression": regression.squared_error(estimate, high)}
            yield OptimizerStep("generator", losses, metrics)
        if epoch >= self.config.tune_from and float(rows.uniform(2, CHOICE)[0, 1]) < self.config.tune_share:
            if self.config.amortise and self.config.negative == "generator":
                negative = generated.detach()
            else:
                negative = self._negative_samples(low, estimate, predicted, scale)
            real, sampled = (self._scattering_statistics(one) for one in (high, negative))
            yield OptimizerStep("scattering", statistics.contrastive_loss(predicted, real, sampled, std))

    def _denoiser_step(self, images: Images, rows: RowStreams, epoch: int) -> OptimizerStep:
        """Return the step of the denoiser, toward the clean images of degraded patches.

        The loss is the mean absolute error in grey levels before the epoch `squared_from`, then the
        mean squared error.
        """
        error = regression.squared_error if epoch >= self.config.squared_from else regression.absolute_error
        losses, untreated = images.new_zeros(len(images)), images.new_zeros(len(images))
        for patch in patches.draw_degraded(images, rows):
            cleaned = self.denoiser(patch.degraded, patch.strength).float()
            losses = losses.index_copy(0, patch.index, error(cleaned, patch.clean))
            untreated = untreated.index_copy(0, patch.index, error(patch.degraded, patch.clean))
        return OptimizerStep("denoiser", losses, {"error_without": untreated})

    @torch.no_grad()
    def finalize(self, images: Callable[[], Iterator[Images]], rows: Callable[[int, int], RowStreams]) -> None:  # noqa: ARG002
        """Compute the filter of the generator's residual images for each scale, after a training.

        Without a filter in the config this does nothing. The filter gives the generator's residual
        images the mean spectrum of the true residual images y − R(x), to the power
        `config.detail_exponent`, because the texture that lowers the energy most cheaply is a
        lattice, in which a few frequencies have most of the power. `images()` iterates over the
        training patches, of which the first `FILTER_PATCHES` are used; `rows` has no effect.
        """
        if self.config.objective != "statistics" or not self.config.detail_radius:
            return
        shown = torch.stack(list(islice(chain.from_iterable(images()), FILTER_PATCHES)))
        for scale in self.config.scales:
            generated, missing = [], []
            for batch in torch.split(shown, 16):
                edge = min(batch.shape[2:]) // scale * scale
                high = batch[:, :, :edge, :edge]
                low = regression.downsample(high, scale)
                estimate = self.regress(low, scale)
                detail = self._generator_detail(low, estimate, scale)
                generated.append(spectrum.power_spectrum(regression.luminance(detail)[:, 0]))
                missing.append(spectrum.power_spectrum(regression.luminance(high - estimate)[:, 0]))
            powers = torch.stack(generated).sum(0), torch.stack(missing).sum(0)
            taps = spectrum.matching_filter(*powers, self.config.detail_radius, self.config.detail_exponent)
            self.get_buffer(f"taps_{scale}").copy_(taps)

    def _negative_samples(
        self, low: Images, estimate: HighResolution, target: Statistics, scale: int
    ) -> HighResolution:
        """Return one high-resolution image per row for the negative phase (Bruna et al., §4).

        It is the result of `config.negative_steps` gradient steps that start at `estimate` and
        lower the distance of the image's scattering coefficients from the statistics `target`.
        Patterns with the period of the low-resolution pixels are removed from the residual image
        that the steps add to `estimate`.
        """
        energy_of = self.energy_function(low, estimate, scale, target)
        with torch.autocast(low.device.type, enabled=False):
            descent = start_descent(energy_of, torch.zeros_like(estimate[:, :1]))
            descent = descend(descent, energy_of, self.config.negative_steps)
        return estimate + statistics.remove_grid_pattern(descent.detail, scale)

    # Evaluation

    @torch.inference_mode()
    def evaluate(
        self, images: Images, seed: int, k: int, precision: str = "float32", report: Report = no_report
    ) -> Figures:
        """Measure the mean PSNR (dB) of bicubic interpolation and of the regression at each scale.

        Returns the metrics for the model card. `images` are at high resolution. `report` is called
        with the number of images after each scale. `seed` and `k` have no effect.
        """
        del seed, k  # nothing is drawn
        figures = []
        for scale in sorted(self.config.scales, reverse=True):
            figures += regression.psnr_figures(self.regression, images, scale, precision)
            report(len(images))
        return figures

r"""Super-Resolution with Deep Convolutional Sufficient Statistics, Bruna et al., arXiv:1511.05666v4.

    paper                    here                          shape       unit      equation
    x                        low                           B C h w     1         low resolution, 0 … 1
    y                        high                          B C s·h s·w 1         high resolution, 0 … 1
    U                        regression.downsample         B C h w     1         antialiased bicubic, scale s
    Σ‖Φ(x,Θ) − y‖²           regression.squared_error      B           levels²   §2, regression
    -                        regression.absolute_error     B           levels    the same with ‖·‖₁
    ½‖U(y) − x‖² + λ‖∇y‖₁    kit/total_variation           B           1         §2, regularised inversion
    Ψ(y)                     Model.statistics              Statistics  1         §3, of the high resolution
    Φ(x)                     statistics.Predictor          Statistics  1         §3, predicted from the low resolution
    ‖Φ(x) − Ψ(y)‖²           statistics.energy             B           1         §3, −log p(y|x) + constant
    argmin_y E(y, x)         descent.descend               B           1         §3, inference by gradient descent
    ∂ log p(y|x)/∂Ψ          statistics.contrastive_loss   B           1         §4, positive and negative phase

Files: `regression` (§2: U, the regression network and its losses), `statistics` (§3 and §4: Ψ, Φ,
the energy), `descent` (minimises the energy of an image), `denoiser` and `degradation` (cleaning of
compressed and noisy images, not of the paper), `patches` (training patches), `model`
(operations and training), `config` (their options).

Levels are grey levels: 255 from black to white. Losses are means over the pixels and channels of an
image. Each channel of the statistics is divided by the root mean square of Ψ(y) − Ψ(R(x)), where
R(x) is the regression's estimate; the energy is the mean squared error of Φ(x). The paper leaves
the scale (the temperature) of its norm open; with this choice R(x) itself has an energy of about 1.

Departs from the paper: the regression network is residual and upsamples by sub-pixel convolution
(Shi et al., arXiv:1609.05158v2; Lim et al., arXiv:1707.02921v1), with one trunk for all scales and
all three colours. Ψ is the scattering of the luminance and, optionally, the first stages of
EfficientNet-Lite0 of the colours; Φ corrects the statistics of the regression's estimate. Samples
of the negative phase are a few descent steps from R(x). Large images are made by a network trained
to minimise the energy (Johnson et al., arXiv:1603.08155v1, there without Φ). Every learned result
is projected onto U(y) = x.
"""

from models.superres.config import Config, UpscaleOptions
from models.superres.model import Model

__all__ = ["Config", "Model", "UpscaleOptions"]

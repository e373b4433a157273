/** The normal distribution: places on the plane are its probabilities, as in the service's manifold. */

// coefficients of P. J. Acklam's rational approximation of the quantile; its relative error is below 1.2e-9
const CENTRE = [-39.69683028665376, 220.9460984245205, -275.9285104469687, 138.357751867269, -30.66479806614716, 2.506628277459239];
const CENTRE_BELOW = [-54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572, 1];
const TAIL = [-0.007784894002430293, -0.3223964580411365, -2.400758277161838, -2.549732539343734, 4.374664141464968, 2.938163982698783];
const TAIL_BELOW = [0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416, 1];
const TAIL_FROM = 0.02425;
/** Beyond this the distribution has no mass that a picture could show. */
const LIMIT = 8;

/** Returns z with P(Z < z) = p, for 0 < p < 1. */
export function quantile(p: number): number {
  if (p > 0.5) return -quantile(1 - p);
  if (p < TAIL_FROM) {
    const root = Math.sqrt(-2 * Math.log(p));
    return polynomial(TAIL, root) / polynomial(TAIL_BELOW, root);
  }
  const centred = p - 0.5;
  const square = centred * centred;
  return (centred * polynomial(CENTRE, square)) / polynomial(CENTRE_BELOW, square);
}

/** Returns p with `quantile(p)` = z: found by bisection. */
export function probability(z: number): number {
  if (z > 0) return 1 - probability(-z);
  if (z < -LIMIT) return 0;
  let [low, high] = [1e-16, 0.5];
  for (let step = 0; step < 60; step++) {
    const middle = (low + high) / 2;
    if (quantile(middle) < z) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

function polynomial(coefficients: readonly number[], x: number): number {
  return coefficients.reduce((sum, coefficient) => sum * x + coefficient, 0);
}

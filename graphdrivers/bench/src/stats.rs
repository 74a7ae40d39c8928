//! Medians and what goes with them.

use serde::{Deserialize, Serialize};

/// What several samples of one thing say.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The middle one; of an even number, the mean of the middle two.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of some samples; `None` without any.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Self { median, min, max })
    }

    /// How far the samples lie apart: (max − min) / median.
    pub fn spread(&self) -> f64 {
        if self.median > 0.0 {
            (self.max - self.min) / self.median
        } else {
            0.0
        }
    }
}

/// Geometric mean of ratios, each with its weight; `None` when the weights add up to nothing.
pub fn weighted_geometric_mean(ratios: impl IntoIterator<Item = (f64, f64)>) -> Option<f64> {
    let (sum, weights) = ratios
        .into_iter()
        .fold((0.0, 0.0), |(sum, weights), (ratio, weight)| {
            (sum + weight * ratio.ln(), weights + weight)
        });
    (weights > 0.0).then(|| (sum / weights).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    #[test]
    fn medians_of_even_and_odd_numbers() {
        let odd = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max, odd.spread()), (2.0, 1.0, 3.0, 1.0));
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Summary::of(&[7.0]).unwrap().spread(), 0.0);
        assert_eq!(Summary::of(&[0.0, 0.0]).unwrap().spread(), 0.0);
        assert!(Summary::of(&[]).is_none());
    }

    #[test]
    fn weights_count_as_repetitions_do() {
        let a = weighted_geometric_mean([(2.0, 2.0), (8.0, 1.0)]).unwrap();
        let b = weighted_geometric_mean([(2.0, 1.0), (2.0, 1.0), (8.0, 1.0)]).unwrap();
        assert!((a - b).abs() < 1e-12 && (a - 32f64.cbrt()).abs() < 1e-12);
        assert!(weighted_geometric_mean([(2.0, 0.0)]).is_none());
    }

    proptest! {
        #[test]
        fn the_median_lies_between_and_ignores_order(mut samples in prop::collection::vec(0.001f64..1e6, 1..20)) {
            let one = Summary::of(&samples).unwrap();
            samples.reverse();
            let other = Summary::of(&samples).unwrap();
            prop_assert_eq!(one, other);
            prop_assert!(one.min <= one.median && one.median <= one.max);
            let below = samples.iter().filter(|&&x| x < one.median).count();
            prop_assert!(below * 2 <= samples.len());
        }
    }
}

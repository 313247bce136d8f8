//! Earlier readings: a rate is made of two, and a layer is not walked at every question.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Two readings nearer to each other say more of the clock than of the container.
const APART: i64 = 1_000_000_000;
/// A layer is walked at most so often, as in containerd.
const OLD: i64 = 10_000_000_000;
/// What was not asked about for so long is gone.
const FORGOTTEN: i64 = 600_000_000_000;

/// Clones share them.
#[derive(Clone, Default)]
pub struct Samples(Arc<Mutex<HashMap<String, Sample>>>);

#[derive(Clone, Copy, Default)]
struct Sample {
    /// Nanoseconds of processor time, and when.
    cpu: Option<(u64, i64)>,
    rate: Option<u64>,
    /// Bytes and inodes, and when.
    layer: Option<((i64, i64), i64)>,
    asked: i64,
}

impl Samples {
    /// Nanoseconds of processor time each second, since the reading before this one; none at the first.
    pub fn rate(&self, id: &str, cpu: u64, at: i64) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, sample| at - sample.asked < FORGOTTEN);
        let sample = all.entry(id.to_owned()).or_default();
        sample.asked = at;
        match sample.cpu {
            Some((_, before)) if at - before < APART => {}
            earlier => {
                sample.rate = earlier.map(|(used, before)| {
                    let rate = cpu.saturating_sub(used) as f64 * 1e9 / (at - before) as f64;
                    rate as u64
                });
                sample.cpu = Some((cpu, at));
            }
        }
        sample.rate
    }

    /// What `measure` said not long ago, or says now.
    pub fn layer(&self, id: &str, at: i64, measure: impl FnOnce() -> Option<(i64, i64)>) -> Option<(i64, i64)> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).and_then(|sample| sample.layer);
        if let Some((layer, _)) = known.filter(|(_, before)| at - before < OLD) {
            return Some(layer);
        }
        let layer = measure()?; // without the lock: it reads a disk
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sample = all.entry(id.to_owned()).or_default();
        (sample.layer, sample.asked) = (Some((layer, at)), at);
        Some(layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_made_of_two_readings_and_a_layer_is_measured_once_in_a_while() {
        let samples = Samples::default();
        let second = 1_000_000_000;
        assert_eq!(samples.rate("a", 100, second), None);
        assert_eq!(samples.rate("a", 500_000_100, 2 * second), Some(500_000_000));
        assert_eq!(samples.rate("a", 900_000_100, 2 * second + 1), Some(500_000_000), "too near");
        assert_eq!(samples.layer("a", second, || Some((1, 2))), Some((1, 2)));
        assert_eq!(samples.layer("a", 2 * second, || panic!()), Some((1, 2)));
        assert_eq!(samples.layer("a", 20 * second, || Some((3, 4))), Some((3, 4)));
    }
}

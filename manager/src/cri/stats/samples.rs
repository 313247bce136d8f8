//! Earlier readings: a rate is made of two, and a layer is not walked at every question.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cgroup::Cgroup;

/// Two readings nearer to each other say more of the clock than of the container.
const APART: i64 = 1_000_000_000;
/// A layer is walked at most so often, as in containerd.
const OLD: i64 = 10_000_000_000;
/// What was measured before that is not told any more.
const TOO_OLD: i64 = 3 * OLD;
/// What was not asked about for so long is gone.
const FORGOTTEN: i64 = 600_000_000_000;
/// How often those that are gone are looked for.
const SWEPT: i64 = 60_000_000_000;

/// Clones share them.
#[derive(Clone, Default)]
pub struct Samples(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    all: HashMap<String, Sample>,
    swept: i64,
}

#[derive(Clone, Default)]
struct Sample {
    /// Nanoseconds of processor time, and when.
    cpu: Option<(u64, i64)>,
    rate: Option<u64>,
    layer: Option<Layer>,
    /// That of the process with this id, which does not move.
    cgroup: Option<(u32, Arc<Cgroup>)>,
    asked: i64,
}

/// What a container's own layer takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    pub bytes: i64,
    pub inodes: i64,
    /// When it was measured.
    pub at: i64,
}

impl Inner {
    fn sample(&mut self, id: &str, at: i64) -> &mut Sample {
        if at - self.swept > SWEPT {
            self.all.retain(|_, sample| at - sample.asked < FORGOTTEN);
            self.swept = at;
        }
        let sample = self.all.entry(id.to_owned()).or_default();
        sample.asked = at;
        sample
    }
}

impl Samples {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds of processor time each second, since the reading before this one; none at the first.
    pub fn rate(&self, id: &str, cpu: u64, at: i64) -> Option<u64> {
        let mut inner = self.lock();
        let sample = inner.sample(id, at);
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

    /// The cgroup that `find` gives for a process, asked once.
    pub fn cgroup(&self, id: &str, pid: u32, at: i64, find: impl FnOnce() -> Option<Cgroup>) -> Option<Arc<Cgroup>> {
        let known = self.lock().sample(id, at).cgroup.clone().filter(|(of, _)| *of == pid);
        if let Some((_, cgroup)) = known {
            return Some(cgroup);
        }
        let cgroup = Arc::new(find()?);
        self.lock().sample(id, at).cgroup = Some((pid, cgroup.clone()));
        Some(cgroup)
    }

    /// What `measure` said not long ago, or says now.
    pub fn layer(&self, id: &str, at: i64, measure: impl FnOnce() -> Option<(i64, i64)>) -> Option<Layer> {
        let known = self.lock().sample(id, at).layer;
        if let Some(layer) = known.filter(|layer| at - layer.at < TOO_OLD) {
            return Some(layer);
        }
        let (bytes, inodes) = measure()?; // without the lock: it reads a disk
        let layer = Layer { bytes, inodes, at };
        self.lock().sample(id, at).layer = Some(layer);
        Some(layer)
    }

    /// Measures again what is old by now, once nobody waits for it.
    pub fn renew(&self, at: i64, measure: impl Fn(&str) -> Option<(i64, i64)>) {
        let old = |sample: &Sample| sample.layer.is_some_and(|layer| (OLD..TOO_OLD).contains(&(at - layer.at)));
        let ids: Vec<String> =
            self.lock().all.iter().filter(|(_, sample)| old(sample)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            let layer = measure(&id).map(|(bytes, inodes)| Layer { bytes, inodes, at });
            if let Some(sample) = self.lock().all.get_mut(&id) {
                sample.layer = layer; // none: it is gone
            }
        }
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
        let layer = |bytes, inodes, at| Some(Layer { bytes, inodes, at });
        assert_eq!(samples.layer("a", second, || Some((1, 2))), layer(1, 2, second));
        samples.renew(2 * second, |_| panic!("it is new"));
        assert_eq!(samples.layer("a", 20 * second, || panic!()), layer(1, 2, second));
        samples.renew(20 * second, |_| Some((3, 4)));
        assert_eq!(samples.layer("a", 21 * second, || panic!()), layer(3, 4, 20 * second));
        assert_eq!(samples.layer("a", 90 * second, || Some((5, 6))), layer(5, 6, 90 * second));
    }

    #[test]
    fn a_process_is_asked_for_its_cgroup_once() {
        let (samples, cgroup) = (Samples::default(), || Some(Cgroup::V2("/x".into())));
        assert_eq!(samples.cgroup("a", 1, 0, || None), None);
        assert_eq!(samples.cgroup("a", 1, 0, cgroup).as_deref(), cgroup().as_ref());
        assert_eq!(samples.cgroup("a", 1, 0, || panic!()).as_deref(), cgroup().as_ref());
        assert_eq!(samples.cgroup("a", 2, 0, || None), None, "another one");
    }
}

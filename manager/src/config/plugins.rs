//! What containerd's configuration keeps below `plugins`, by the plugin's name.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::collector::Schedule;
use crate::transfer::Verifiers;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Plugins {
    #[serde(rename = "io.containerd.gc.v1.scheduler")]
    pub scheduler: Scheduler,
    #[serde(rename = "io.containerd.image-verifier.v1.bindir")]
    pub verifier: Verifier,
    #[serde(rename = "io.containerd.metadata.v1.bolt")]
    pub metadata: Metadata,
    #[serde(rename = "io.containerd.monitor.container.v1.restart")]
    pub restart: Restart,
}

/// containerd's thresholds limit how long its collector keeps others waiting; ours keeps nobody waiting, and has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    pub startup_delay: Span,
    pub schedule_delay: Span,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metadata {
    pub content_sharing_policy: Sharing,
}

/// Programs that are asked whether an image may be pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Verifier {
    pub bin_dir: PathBuf,
    pub max_verifiers: i64,
    pub per_verifier_timeout: Span,
}

impl Default for Verifier {
    fn default() -> Verifier {
        let per_verifier_timeout = Span(Duration::from_secs(10));
        Verifier { bin_dir: "/opt/containerd/image-verifier/bin".into(), max_verifiers: 10, per_verifier_timeout }
    }
}

/// Whether a namespace gets a blob that another has for knowing its digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    #[default]
    Shared,
    Isolated,
}

impl Sharing {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Sharing::Shared => "shared",
            Sharing::Isolated => "isolated",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restart {
    pub interval: Span,
}

impl Default for Scheduler {
    fn default() -> Scheduler {
        Scheduler { startup_delay: Span(Duration::from_millis(100)), schedule_delay: Span(Duration::ZERO) }
    }
}

impl Default for Restart {
    fn default() -> Restart {
        Restart { interval: Span(Duration::from_secs(10)) }
    }
}

impl Plugins {
    pub fn verifiers(&self) -> Verifiers {
        let Verifier { bin_dir, max_verifiers, per_verifier_timeout } = self.verifier.clone();
        Verifiers { folder: bin_dir, most: max_verifiers, patience: per_verifier_timeout.0 }
    }

    pub fn schedule(&self) -> Schedule {
        Schedule { startup_delay: self.scheduler.startup_delay.0, delay: self.scheduler.schedule_delay.0 }
    }
}

/// A time as Go writes it: `100ms`, `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = |error| serde::de::Error::custom(format!("{text:?} is no duration: {error}"));
        humantime::parse_duration(&text).map(Span).map_err(wrong)
    }
}

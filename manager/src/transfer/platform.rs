//! What an image runs on.
//!
//! Source: image-spec image-index.md, "platform"; containerd/platforms on normal forms.

use serde::Deserialize;

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: String,
}

/// One name where several are in use; the variant that all of an architecture have is not said.
const SAME: &[(&str, &str, &str, &str)] = &[
    ("x86_64", "", "amd64", ""),
    ("x86-64", "", "amd64", ""),
    ("amd64", "v1", "amd64", ""),
    ("aarch64", "", "arm64", ""),
    ("arm64", "8", "arm64", ""),
    ("arm64", "v8", "arm64", ""),
    ("armhf", "", "arm", "v7"),
    ("armel", "", "arm", "v6"),
    ("arm", "", "arm", "v7"),
    ("i386", "", "386", ""),
];

impl Platform {
    /// This machine's.
    pub fn own() -> Platform {
        Platform { os: "linux".into(), architecture: std::env::consts::ARCH.into(), variant: String::new() }.normal()
    }

    fn normal(&self) -> Platform {
        let (architecture, variant) = (self.architecture.to_lowercase(), self.variant.to_lowercase());
        let known = SAME.iter().find(|same| same.0 == architecture && same.1 == variant);
        let (architecture, variant) = known.map_or((architecture, variant), |same| (same.2.into(), same.3.into()));
        Platform { os: self.os.to_lowercase(), architecture, variant }
    }

    /// Whether an image for `other` runs where one for this platform is asked for. What an image does not say is no obstacle.
    pub fn takes(&self, other: &Platform) -> bool {
        let (own, other) = (self.normal(), other.normal());
        let same = |one: &str, other: &str| one.is_empty() || other.is_empty() || one == other;
        same(&own.os, &other.os)
            && same(&own.architecture, &other.architecture)
            && (own.variant == other.variant || self.variant.is_empty())
    }

    /// Whether any of `wanted` takes an image for this; without wishes, all are taken.
    pub fn is_among(&self, wanted: &[Platform]) -> bool {
        wanted.is_empty() || wanted.iter().any(|wish| wish.takes(self))
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let separator = if self.variant.is_empty() { "" } else { "/" };
        write!(f, "{}/{}{separator}{}", self.os, self.architecture, self.variant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        Platform { os: part(), architecture: part(), variant: part() }
    }

    #[test]
    fn an_image_runs_where_its_platform_is_meant() {
        for (asked, offered, expected) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/x86_64", "linux/amd64/v1", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("linux/arm/v7", "linux/arm", true),
            ("linux/amd64", "windows/amd64", false),
            ("linux/amd64", "unknown/unknown", false),
            ("linux/amd64", "", true),
        ] {
            assert_eq!(platform(asked).takes(&platform(offered)), expected, "{asked} {offered}");
        }
    }
}

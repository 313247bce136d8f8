//! `[proxy_plugins.NAME]`: a part of the API that a program of its own serves.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tare_proto::containerd::types::Platform as Message;

use crate::error::{Error, Result};
use crate::snapshot::{NATIVE, OVERLAY};
use crate::transfer::Platform;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Proxy {
    pub r#type: String,
    pub address: PathBuf,
    pub platform: String,
    pub capabilities: Vec<String>,
    pub exports: BTreeMap<String, String>,
}

impl Proxy {
    /// # Errors
    /// `InvalidArgument`, with the key.
    pub fn check(&self, name: &str) -> Result<()> {
        let refused = |key: &str, why: &str| Err(Error::InvalidArgument(format!("proxy_plugins.{name}{key}: {why}")));
        if matches!(name, "" | OVERLAY | NATIVE) {
            return refused("", "that is a snapshotter of our own");
        }
        if self.r#type != "snapshot" {
            return refused(&format!(".type = {:?}", self.r#type), "only \"snapshot\" is supported");
        }
        if !self.address.is_absolute() {
            return refused(&format!(".address = {:?}", self.address), "it must be an absolute path");
        }
        if !self.platform.is_empty() && !self.platform.contains('/') {
            return refused(&format!(".platform = {:?}", self.platform), "it must be OS/ARCHITECTURE");
        }
        Ok(())
    }

    pub fn platform(&self) -> Message {
        let mut parts = self.platform.splitn(3, '/').map(str::to_owned);
        let (os, architecture) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        match os.is_empty() {
            true => {
                let Platform { os, architecture, variant } = Platform::own();
                Message { os, architecture, variant, ..Message::default() }
            }
            false => Message { os, architecture, variant: parts.next().unwrap_or_default(), ..Message::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_proxy_is_named() {
        let good = Proxy { r#type: "snapshot".into(), address: "/run/s.sock".into(), ..Proxy::default() };
        good.check("stargz").unwrap();
        assert!(good.check(OVERLAY).is_err());
        for (bad, text) in [
            (Proxy { r#type: "content".into(), ..good.clone() }, "proxy_plugins.s.type = \"content\": only"),
            (Proxy { address: "s.sock".into(), ..good.clone() }, "proxy_plugins.s.address = \"s.sock\": it must"),
            (Proxy { platform: "linux".into(), ..good.clone() }, "proxy_plugins.s.platform = \"linux\": it must"),
        ] {
            let said = bad.check("s").unwrap_err().to_string();
            assert!(said.starts_with(text), "{said}");
        }
        let arm = Proxy { platform: "linux/arm/v7".into(), ..good };
        assert_eq!((arm.platform().architecture, arm.platform().variant), ("arm".to_owned(), "v7".to_owned()));
    }
}

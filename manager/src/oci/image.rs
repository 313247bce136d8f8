//! What an image says about running it. Source: image-spec config.md.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    pub user: String,
    pub env: Option<Vec<String>>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub working_dir: String,
    pub labels: Option<HashMap<String, String>>,
    pub stop_signal: String,
    /// Their paths are the keys.
    pub volumes: Option<BTreeMap<String, Value>>,
}

impl ImageConfig {
    /// # Errors
    /// `InvalidArgument`.
    pub fn read(config: &[u8]) -> Result<ImageConfig> {
        #[derive(Deserialize)]
        struct Whole {
            #[serde(default)]
            config: Option<ImageConfig>,
        }
        let whole: Whole = serde_json::from_slice(config)
            .map_err(|error| Error::InvalidArgument(format!("reading an image's configuration: {error}")))?;
        Ok(whole.config.unwrap_or_default())
    }
}

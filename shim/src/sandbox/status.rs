//! What is asked of a sandbox and changes nothing.

use std::collections::HashMap;
use std::fs;
use std::time::SystemTime;

use tare_proto::containerd::runtime::sandbox::v1::{
    PingRequest, PingResponse, PlatformRequest, PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse,
    SandboxStatusRequest, SandboxStatusResponse,
};
use tare_proto::containerd::types::{Metric, Platform};
use tare_proto::ttrpc::{Code, Error};

use super::Sandbox;
use crate::cgroup::metrics;
use crate::task::{Supervisor, timestamp};

impl Supervisor {
    /// In the words of image indexes, which are Go's.
    #[allow(clippy::unnecessary_wraps)] // as all methods
    pub(super) fn platform(&self, _: &PlatformRequest) -> Result<PlatformResponse, Error> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform = Platform { os: "linux".into(), architecture: architecture.into(), ..Platform::default() };
        Ok(PlatformResponse { platform: Some(platform) })
    }

    pub(super) fn ping_sandbox(&self, request: &PingRequest) -> Result<PingResponse, Error> {
        self.find_sandbox(&request.sandbox_id).map(|_| PingResponse {})
    }

    pub(super) fn sandbox_status(&self, request: &SandboxStatusRequest) -> Result<SandboxStatusResponse, Error> {
        let sandbox = self.find_sandbox(&request.sandbox_id)?;
        Ok(SandboxStatusResponse {
            sandbox_id: sandbox.id.clone(),
            pid: sandbox.init.pid(),
            state: sandbox.state().into(),
            info: if request.verbose { sandbox.info() } else { HashMap::new() },
            created_at: timestamp(sandbox.created),
            exited_at: sandbox.exit.get().and_then(|exit| timestamp(exit.at)),
            extra: None,
        })
    }

    /// What the pod's own cgroup counts; those of its containers lie beside it.
    pub(super) fn sandbox_metrics(&self, request: &SandboxMetricsRequest) -> Result<SandboxMetricsResponse, Error> {
        let sandbox = self.find_sandbox(&request.sandbox_id)?;
        let data = sandbox.cgroups.as_ref().and_then(metrics::of);
        let missing = || Error::new(Code::NotFound, format!("cgroup of {} does not exist: not found", sandbox.id));
        let (id, timestamp) = (sandbox.id.clone(), timestamp(SystemTime::now()));
        Ok(SandboxMetricsResponse { metrics: Some(Metric { timestamp, id, data: Some(data.ok_or_else(missing)?) }) })
    }
}

impl Sandbox {
    /// In CRI's words.
    fn state(&self) -> &'static str {
        if self.started.get() && self.exit.get().is_none() { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" }
    }

    /// For `crictl inspectp` and the like: JSON under the one name that they look for.
    fn info(&self) -> HashMap<String, String> {
        let spec = fs::read(self.bundle.join("config.json")).ok();
        let spec: serde_json::Value = spec.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let status = if self.exit.get().is_some() { "stopped" } else { "running" };
        let info = serde_json::json!({"pid": self.init.pid(), "processStatus": status, "runtimeSpec": spec});
        HashMap::from([("info".to_owned(), info.to_string())])
    }
}

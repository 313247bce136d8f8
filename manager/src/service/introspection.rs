use std::os::unix::fs::MetadataExt as _;

use tare_proto::any;
use tare_proto::containerd::services::introspection::v1 as pb;
use tare_proto::containerd::types::{Platform, RuntimeRequest};
use tonic::{Request, Response, Status};

use super::Services;
use crate::config::Sharing;
use crate::error::{Doing as _, Error};
use crate::filter::Filter;
use crate::{caretaker, restart, snapshot, task};

#[tonic::async_trait]
impl pb::introspection_server::Introspection for Services {
    async fn plugins(
        &self,
        request: Request<pb::PluginsRequest>,
    ) -> std::result::Result<Response<pb::PluginsResponse>, Status> {
        let filter = Filter::parse(&request.into_inner().filters)?;
        let mut plugins = self.parts();
        plugins.retain(|plugin| filter.matches(|path| field(plugin, path)));
        Ok(Response::new(pb::PluginsResponse { plugins }))
    }

    async fn server(&self, _: Request<()>) -> std::result::Result<Response<pb::ServerResponse>, Status> {
        const OWN: &str = "/proc/self/ns/pid";
        let pidns = std::fs::metadata(OWN).doing(|| format!("looking at {OWN}"))?.ino();
        let pid = std::process::id().into();
        Ok(Response::new(pb::ServerResponse { uuid: self.uuid.clone(), pid, pidns, deprecations: Vec::new() }))
    }

    /// For the task plugin, the shim of a runtime says what it is.
    async fn plugin_info(
        &self,
        request: Request<pb::PluginInfoRequest>,
    ) -> std::result::Result<Response<pb::PluginInfoResponse>, Status> {
        let request = request.into_inner();
        let known = |plugin: &pb::Plugin| plugin.r#type == request.r#type && plugin.id == request.id;
        let missing = || Error::NotFound(format!("plugin {}.{}", request.r#type, request.id));
        let plugin = self.parts().into_iter().find(known).ok_or_else(missing)?;
        let mut extra = None;
        if let Some(options) = request.options {
            let asked = any::unpack::<RuntimeRequest>(&options, "containerd.types.RuntimeRequest")
                .map_err(|error| Error::InvalidArgument(format!("reading options: {error}")))?;
            let asked = asked.filter(|_| plugin.r#type == TASK).ok_or_else(|| {
                Error::InvalidArgument(format!("plugin {} takes no options of type {}", request.id, options.type_url))
            })?;
            let info = task::info(&asked.runtime_path, asked.options.as_ref()).await?;
            extra = Some(any::pack("containerd.types.RuntimeInfo", &info));
        }
        Ok(Response::new(pb::PluginInfoResponse { plugin: Some(plugin), extra }))
    }
}

const TASK: &str = "io.containerd.runtime.v2";

impl Services {
    /// What this daemon is made of, under containerd's names for it: clients look them up.
    fn parts(&self) -> Vec<pb::Plugin> {
        let policy = if self.content.is_isolated() { Sharing::Isolated } else { Sharing::Shared };
        let path = |below: &str| self.root.join(below).display().to_string();
        let folder = |below: &str| ("root", path(below).trim_end_matches('/').to_owned());
        let mut parts = vec![
            part("io.containerd.content.v1", "content", [folder("")], false),
            part("io.containerd.snapshotter.v1", snapshot::OVERLAY, [folder("snapshots/overlayfs")], true),
            part("io.containerd.snapshotter.v1", snapshot::NATIVE, [folder("snapshots/native")], true),
            part(
                "io.containerd.metadata.v1",
                "bolt",
                [("policy", policy.name().into()), ("path", path("tared.db"))],
                false,
            ),
            part("io.containerd.gc.v1", "scheduler", [], false),
            part("io.containerd.lease.v1", "manager", [], false),
            part("io.containerd.event.v1", "exchange", [], false),
            part("io.containerd.differ.v1", "walking", [], true),
            part("io.containerd.image-verifier.v1", "bindir", [], false),
            part("io.containerd.transfer.v1", "local", [], false),
            part("io.containerd.streaming.v1", "manager", [], false),
            part("io.containerd.sandbox.store.v1", "local", [], false),
            part("io.containerd.sandbox.controller.v1", "shim", [], false),
            part("io.containerd.shim.v1", "manager", [], false),
            part(caretaker::PLUGIN, "folders", [folder(caretaker::FOLDERS)], false),
            part(TASK, "task", [("log-uri-schemes", "fifo,binary,file".into())], true),
        ];
        let restart = part("io.containerd.monitor.container.v1", "restart", [], false);
        parts.push(pb::Plugin { capabilities: restart::POLICIES.map(str::to_owned).into(), ..restart });
        parts.extend(self.proxies.iter().map(|(name, proxy)| pb::Plugin {
            r#type: "io.containerd.snapshotter.v1".into(),
            id: name.clone(),
            platforms: vec![proxy.platform()],
            exports: proxy.exports.clone().into_iter().collect(),
            capabilities: proxy.capabilities.clone(),
            ..pb::Plugin::default()
        }));
        parts.extend(SERVICES.iter().map(|id| part("io.containerd.grpc.v1", id, [], false)));
        parts
    }
}

const SERVICES: &[&str] = &[
    "containers",
    "content",
    "cri",
    "diff",
    "events",
    "healthcheck",
    "images",
    "introspection",
    "leases",
    "mounts",
    "namespaces",
    "sandbox-controllers",
    "sandboxes",
    "snapshots",
    "streaming",
    "tasks",
    "transfer",
    "version",
];

fn part<const N: usize>(r#type: &str, id: &str, exports: [(&str, String); N], on_platform: bool) -> pb::Plugin {
    pb::Plugin {
        r#type: r#type.into(),
        id: id.into(),
        platforms: if on_platform { vec![platform()] } else { Vec::new() },
        exports: exports.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        ..pb::Plugin::default()
    }
}

/// This machine, in Go's words.
fn platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Platform { os: std::env::consts::OS.into(), architecture: architecture.into(), ..Platform::default() }
}

fn field(plugin: &pb::Plugin, path: &[String]) -> Option<String> {
    match path {
        [first] if first == "type" => Some(plugin.r#type.clone()),
        [first] if first == "id" => Some(plugin.id.clone()),
        [first, rest @ ..] if first == "capabilities" => {
            plugin.capabilities.contains(&rest.join(".")).then(String::new)
        }
        _ => None,
    }
}

//! RunPodSandbox.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tare_proto::any;
use tare_proto::runtime::v1 as pb;

use super::{check, files, sysctl, userns};
use crate::cni;
use crate::cri::config::Runtime;
use crate::cri::record::{Record, off_thread};
use crate::cri::rows::{Pod, PodState};
use crate::cri::{Cri, events, namespace, new_id, now, required};
use crate::error::Result;
use crate::names::Id;
use crate::sandbox::Creation;

/// Where network namespaces are pinned, for all to see: `ip netns` lists them.
const NETNS: &str = "/run/netns";

impl Cri {
    pub(in crate::cri) async fn run_pod(&self, request: pb::RunPodSandboxRequest) -> Result<String> {
        let config = required(request.config, "config")?;
        let runtime = self.config.runtime(&request.runtime_handler)?.clone();
        check::check(&config)?;
        let id = new_id();
        let mut row = Pod { id: id.clone(), config: Some(config), handler: request.runtime_handler, ..Pod::default() };
        row.created_at = now();
        if !row.is_on_host_network() {
            row.netns = format!("{NETNS}/cni-{}", &id[..32]);
        }
        let pod = self.pods.add(row).await?;
        if let Err(error) = self.make_pod(&pod, &runtime).await {
            if let Err(left) = self.unmake_pod(&pod).await {
                tracing::error!(pod = id, "undoing what was made of a pod: {left}");
                // A client that lists it can have it removed later.
                pod.change(|row| {
                    row.set_state(PodState::NotReady);
                    Ok(())
                })
                .await?;
            }
            return Err(error);
        }
        self.watch_pod(pod.clone());
        events::pod(self, &pod, pb::ContainerEventType::ContainerCreatedEvent);
        events::pod(self, &pod, pb::ContainerEventType::ContainerStartedEvent);
        Ok(id)
    }

    async fn make_pod(&self, pod: &Arc<Record<Pod>>, runtime: &Runtime) -> Result<()> {
        let row = pod.row();
        let (places, host, for_files) = (self.folders.files(&pod.id), self.host.clone(), row.clone());
        off_thread(move || {
            files::make(&places, &for_files, &host)?;
            make_netns(&for_files)
        })
        .await?;
        // Neither waits for the other: plugins and shim are programs that take a while to start.
        let (ips, pid) = tokio::try_join!(self.attach(&row), self.launch(&row, runtime))?;
        pod.change(move |row| {
            row.set_state(PodState::Ready);
            (row.ips, row.pid) = (ips, pid);
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// The pod's addresses, the preferred one first.
    async fn attach(&self, row: &Pod) -> Result<Vec<String>> {
        if row.netns.is_empty() {
            return Ok(Vec::new());
        }
        let attachment = attachment(row, Some(PathBuf::from(&row.netns)))?;
        let network = self.network.add(&attachment).await?;
        Ok(network.ips().iter().map(ToString::to_string).collect())
    }

    async fn launch(&self, row: &Pod, runtime: &Runtime) -> Result<u32> {
        let id = Id::parse(&row.id)?;
        let creation = Creation {
            runtime: runtime.r#type.clone(),
            options: Some(runtime.options(self.config.systemd_cgroup, (0, 0))),
            spec: None,
            rootfs: Vec::new(),
            config: Some(any::pack("runtime.v1.PodSandboxConfig", &sysctl::with_defaults(row, row.config().clone()))),
            netns: row.netns.clone(),
            annotations: Default::default(),
        };
        self.parts.sandboxes.create(&namespace(), &id, creation).await?;
        Ok(self.parts.sandboxes.start(&namespace(), &id).await?.pid)
    }

    /// Notices when the pod ends by itself.
    pub(in crate::cri) fn watch_pod(&self, pod: Arc<Record<Pod>>) {
        let cri = self.clone();
        tokio::spawn(async move {
            let Ok(id) = Id::parse(&pod.id) else { return };
            // Whatever the answer: a sandbox whose shim cannot be asked is none any more.
            let _ = cri.parts.sandboxes.wait(&namespace(), &id).await;
            let _turn = pod.turn.write().await;
            if pod.row().state() != PodState::Ready || cri.pods.get(&pod.id).is_none() {
                return; // it was stopped, and whoever did so has said so
            }
            tracing::warn!(pod = pod.id, "the pod has ended");
            let ended = pod.change(|row| {
                row.set_state(PodState::NotReady);
                row.pid = 0;
                Ok(())
            });
            match ended.await {
                Ok(_) => events::pod(&cri, &pod, pb::ContainerEventType::ContainerStoppedEvent),
                Err(error) => tracing::error!(pod = pod.id, "{error}"),
            }
        });
    }
}

fn make_netns(row: &Pod) -> Result<()> {
    if row.netns.is_empty() {
        return Ok(());
    }
    match row.namespaces().userns_options.filter(|users| users.mode() == pb::NamespaceMode::Pod) {
        Some(users) => userns::make_netns(Path::new(&row.netns), &users),
        None => cni::netns::make(Path::new(&row.netns)),
    }
}

/// What plugins are told of a pod; no namespace if it is gone.
///
/// # Errors
/// A name that would be more than one argument.
pub(super) fn attachment(row: &Pod, netns: Option<PathBuf>) -> Result<cni::Attachment> {
    let config = row.config();
    let metadata = config.metadata.clone().unwrap_or_default();
    let attachment = cni::Attachment::new(&row.id, netns)?;
    let mut attachment = attachment.of_pod(&metadata.namespace, &metadata.name, &metadata.uid)?;
    attachment.capabilities = crate::cri::network::capabilities(config)?;
    Ok(attachment)
}

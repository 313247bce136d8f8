//! Pods as CRI shows them.

use std::collections::HashMap;
use std::path::Path;

use serde_json::json;
use tare_proto::runtime::v1 as pb;

use crate::cri::rows::{Pod, PodState};
use crate::cri::{Cri, config, namespace, selected};
use crate::error::Result;
use crate::names::Id;

impl Cri {
    pub(in crate::cri) fn list_pods(&self, filter: Option<&pb::PodSandboxFilter>) -> Vec<pb::PodSandbox> {
        let rows = self.pods.all().into_iter().map(|pod| pod.row()).filter(|row| row.state() != PodState::Making);
        let all = rows.map(|row| listed(&row));
        let Some(filter) = filter else { return all.collect() };
        // An id may be the beginning of one, if it is of one alone.
        let id = self.pods.get(&filter.id).map(|pod| pod.id.clone());
        all.filter(|pod| filter.id.is_empty() || Some(&pod.id) == id.as_ref())
            .filter(|pod| filter.state.as_ref().is_none_or(|state| state.state == pod.state))
            .filter(|pod| selected(&filter.label_selector, &pod.labels))
            .collect()
    }

    pub(in crate::cri) async fn pod_status(
        &self,
        request: &pb::PodSandboxStatusRequest,
    ) -> Result<pb::PodSandboxStatusResponse> {
        let pod = self.pods.find(&request.pod_sandbox_id)?;
        let row = pod.row();
        let info = if request.verbose { self.pod_info(&row).await? } else { HashMap::new() };
        let containers_statuses = self.statuses_of(&pod.id);
        Ok(pb::PodSandboxStatusResponse {
            status: Some(status(&row)),
            info,
            containers_statuses,
            timestamp: crate::cri::now(),
        })
    }

    /// JSON under the one name that `crictl inspectp` and the like look for.
    async fn pod_info(&self, row: &Pod) -> Result<HashMap<String, String>> {
        let id = Id::parse(&row.id)?;
        let mut info = json!({});
        if let Ok(status) = self.parts.sandboxes.status(&namespace(), &id, true).await
            && let Some(said) = status.info.get("info").and_then(|said| serde_json::from_str(said).ok())
        {
            info = said;
        }
        let runtime = self.config.runtime(&row.handler)?;
        info["pid"] = json!(row.pid);
        info["netNamespace"] = json!(row.netns);
        info["netNamespaceClosed"] = json!(!row.netns.is_empty() && !Path::new(&row.netns).exists());
        info["runtimeHandler"] = json!(row.handler);
        info["runtimeType"] = json!(runtime.r#type);
        info["runtimeOptions"] = config::shown(Some(&runtime.options(self.config.systemd_cgroup, (0, 0))));
        info["config"] = json!(row.config());
        info["cniResult"] = network(row);
        Ok(HashMap::from([("info".to_owned(), info.to_string())]))
    }
}

/// The pod's interface as containerd's plugin library would have told of it.
fn network(row: &Pod) -> serde_json::Value {
    if row.ips.is_empty() {
        return json!(null);
    }
    let ips: Vec<_> = row.ips.iter().map(|ip| json!({ "IP": ip })).collect();
    json!({"Interfaces": {"eth0": {"IPConfigs": ips, "Sandbox": row.netns}}})
}

fn listed(row: &Pod) -> pb::PodSandbox {
    let config = row.config();
    pb::PodSandbox {
        id: row.id.clone(),
        metadata: config.metadata.clone(),
        state: state(row).into(),
        created_at: row.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: row.handler.clone(),
    }
}

pub fn status(row: &Pod) -> pb::PodSandboxStatus {
    let config = row.config();
    let mut ips = row.ips.clone();
    if state(row) == pb::PodSandboxState::SandboxNotready {
        ips.clear(); // they were given back
    }
    let first = if ips.is_empty() { String::new() } else { ips.remove(0) };
    let options = row.namespaces();
    pb::PodSandboxStatus {
        id: row.id.clone(),
        metadata: config.metadata.clone(),
        state: state(row).into(),
        created_at: row.created_at,
        network: Some(pb::PodSandboxNetworkStatus {
            ip: first,
            additional_ips: ips.into_iter().map(|ip| pb::PodIp { ip }).collect(),
        }),
        linux: Some(pb::LinuxPodSandboxStatus { namespaces: Some(pb::Namespace { options: Some(options) }) }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: row.handler.clone(),
    }
}

fn state(row: &Pod) -> pb::PodSandboxState {
    match row.state() {
        PodState::Ready => pb::PodSandboxState::SandboxReady,
        PodState::NotReady | PodState::Making => pb::PodSandboxState::SandboxNotready,
    }
}

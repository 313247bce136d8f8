//! What containers and pods use: ContainerStats, PodSandboxStats and their lists.

mod cgroup;
mod metrics;
mod network;
mod processes;
mod samples;

use std::collections::HashMap;
use std::sync::Arc;

use tare_proto::runtime::v1 as pb;

use super::record::{Record, off_thread};
use super::rows::{Container, ContainerState, Pod, PodState};
use super::{Cri, namespace, now, selected};
use crate::error::Result;
use crate::snapshot::OVERLAY;
use cgroup::{Cgroup, Usage};
pub use metrics::descriptors;
pub use samples::Samples;

fn value(value: u64) -> Option<pb::UInt64Value> {
    Some(pb::UInt64Value { value })
}

impl Cri {
    pub(super) async fn container_stats(&self, id: &str) -> Result<pb::ContainerStats> {
        let (cri, container) = (self.clone(), self.containers.find(id)?);
        off_thread(move || Ok(cri.stats_of(&container.row(), now()))).await
    }

    /// Those that run: a kubelet asks for nothing else.
    pub(super) async fn list_container_stats(
        &self,
        filter: Option<pb::ContainerStatsFilter>,
    ) -> Result<Vec<pb::ContainerStats>> {
        let filter = filter.unwrap_or_default();
        let id = self.containers.get(&filter.id).map(|container| container.id.clone());
        let pod = self.pods.get(&filter.pod_sandbox_id).map(|pod| pod.id.clone());
        let cri = self.clone();
        off_thread(move || {
            let at = now();
            let rows = cri.containers.all().into_iter().map(|container| container.row());
            let rows = rows
                .filter(|row| row.state() == ContainerState::Running)
                .filter(|row| filter.id.is_empty() || Some(&row.id) == id.as_ref())
                .filter(|row| filter.pod_sandbox_id.is_empty() || Some(&row.pod) == pod.as_ref())
                .filter(|row| selected(&filter.label_selector, &row.config().labels));
            let stats = rows.map(|row| cri.stats_of(&row, at)).collect();
            cri.renew_layers(at);
            Ok(stats)
        })
        .await
    }

    pub(super) async fn pod_stats(&self, id: &str) -> Result<pb::PodSandboxStats> {
        let (cri, pod) = (self.clone(), self.pods.find(id)?);
        off_thread(move || {
            let running = cri.containers_of(&pod.id).into_iter().map(|container| container.row());
            let running = running.filter(|row| row.state() == ContainerState::Running).collect();
            Ok(cri.stats_of_pod(&pod, running, now()))
        })
        .await
    }

    pub(super) async fn list_pod_stats(
        &self,
        filter: Option<pb::PodSandboxStatsFilter>,
    ) -> Result<Vec<pb::PodSandboxStats>> {
        let filter = filter.unwrap_or_default();
        let id = self.pods.get(&filter.id).map(|pod| pod.id.clone());
        let cri = self.clone();
        off_thread(move || {
            let at = now();
            let mut running = cri.running_by_pod();
            let pods = cri.pods.all().into_iter().filter(|pod| {
                let row = pod.row();
                row.state() == PodState::Ready
                    && (filter.id.is_empty() || Some(&row.id) == id.as_ref())
                    && selected(&filter.label_selector, &row.config().labels)
            });
            let mut of = |pod: &str| running.remove(pod).unwrap_or_default();
            let stats = pods.map(|pod| cri.stats_of_pod(&pod, of(&pod.id), at)).collect();
            cri.renew_layers(at);
            Ok(stats)
        })
        .await
    }

    /// In one walk over all of them: a kubelet asks for every pod at once.
    fn running_by_pod(&self) -> HashMap<String, Vec<Arc<Container>>> {
        let mut by_pod: HashMap<String, Vec<Arc<Container>>> = HashMap::new();
        for row in self.containers.all().into_iter().map(|container| container.row()) {
            if row.state() == ContainerState::Running {
                by_pod.entry(row.pod.clone()).or_default().push(row);
            }
        }
        by_pod
    }

    fn stats_of(&self, row: &Container, at: i64) -> pb::ContainerStats {
        let config = row.config();
        let find = || Cgroup::of(row.pid).filter(|_| row.pid != 0);
        let usage = self.samples.cgroup(&row.id, row.pid, at, find).and_then(|cgroup| cgroup.usage());
        pb::ContainerStats {
            attributes: Some(pb::ContainerAttributes {
                id: row.id.clone(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            cpu: usage.as_ref().map(|usage| self.cpu(&row.id, usage, at)),
            memory: usage.as_ref().map(|usage| memory(usage, at)),
            writable_layer: self.writable_layer(&row.id, at),
            swap: usage.as_ref().map(|usage| swap(usage, at)),
            io: usage.as_ref().map(|usage| io(usage, at)),
        }
    }

    fn stats_of_pod(&self, pod: &Record<Pod>, running: Vec<Arc<Container>>, at: i64) -> pb::PodSandboxStats {
        let row = pod.row();
        let config = row.config();
        let containers: Vec<pb::ContainerStats> = running.iter().map(|row| self.stats_of(row, at)).collect();
        // The pod's own cgroup is the kubelet's, above all of its containers'; a pod without one has only their sum.
        let find = || Cgroup::of(row.pid).map(|cgroup| cgroup.parent());
        let own = Some(row.pid).filter(|pid| *pid != 0 && !row.cgroup_parent().is_empty());
        let own = own.and_then(|pid| self.samples.cgroup(&row.id, pid, at, find));
        let usage = own.and_then(|cgroup| cgroup.usage());
        let processes = usage.as_ref().map(|usage| usage.processes);
        pb::PodSandboxStats {
            attributes: Some(pb::PodSandboxAttributes {
                id: row.id.clone(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            linux: Some(pb::LinuxPodSandboxStats {
                cpu: usage
                    .as_ref()
                    .map_or_else(|| sum_cpu(&containers, at), |usage| Some(self.cpu(&row.id, usage, at))),
                memory: usage.as_ref().map_or_else(|| sum_memory(&containers, at), |usage| Some(memory(usage, at))),
                network: network::usage(row.pid, at).filter(|_| !row.is_on_host_network()),
                process: processes.map(|count| pb::ProcessUsage { timestamp: at, process_count: value(count) }),
                containers,
                io: usage.as_ref().map(|usage| io(usage, at)),
            }),
            windows: None,
        }
    }

    fn cpu(&self, id: &str, usage: &Usage, at: i64) -> pb::CpuUsage {
        pb::CpuUsage {
            timestamp: at,
            usage_core_nano_seconds: value(usage.cpu),
            usage_nano_cores: self.samples.rate(id, usage.cpu, at).and_then(value),
            psi: usage.pressure[0],
        }
    }

    fn measure_layer(&self, id: &str) -> Option<(i64, i64)> {
        self.parts.snapshots.usage(&namespace(), OVERLAY, id).ok()
    }

    /// Measures layers again that have been asked for, while nobody waits.
    fn renew_layers(&self, at: i64) {
        let cri = self.clone();
        tokio::task::spawn_blocking(move || cri.samples.renew(at, |id| cri.measure_layer(id)));
    }

    fn writable_layer(&self, id: &str, at: i64) -> Option<pb::FilesystemUsage> {
        let layer = self.samples.layer(id, at, || self.measure_layer(id))?;
        let mountpoint = self.parts.root.join("snapshots").join(OVERLAY).display().to_string();
        Some(pb::FilesystemUsage {
            timestamp: layer.at,
            fs_id: Some(pb::FilesystemIdentifier { mountpoint }),
            used_bytes: value(layer.bytes.unsigned_abs()),
            inodes_used: value(layer.inodes.unsigned_abs()),
        })
    }
}

fn memory(usage: &Usage, at: i64) -> pb::MemoryUsage {
    pb::MemoryUsage {
        timestamp: at,
        working_set_bytes: value(usage.working_set()),
        available_bytes: usage.limit.and_then(|limit| value(limit.saturating_sub(usage.working_set()))),
        usage_bytes: value(usage.memory),
        rss_bytes: value(usage.rss),
        page_faults: value(usage.faults),
        major_page_faults: value(usage.major_faults),
        psi: usage.pressure[1],
    }
}

fn swap(usage: &Usage, at: i64) -> pb::SwapUsage {
    let limit = usage.swap_limit.zip(usage.limit).map(|(both, memory)| both.saturating_sub(memory));
    pb::SwapUsage {
        timestamp: at,
        swap_available_bytes: limit.and_then(|limit| value(limit.saturating_sub(usage.swap))),
        swap_usage_bytes: value(usage.swap),
    }
}

fn io(usage: &Usage, at: i64) -> pb::IoUsage {
    pb::IoUsage { timestamp: at, psi: usage.pressure[2] }
}

fn sum_cpu(containers: &[pb::ContainerStats], at: i64) -> Option<pb::CpuUsage> {
    let all = || containers.iter().filter_map(|one| one.cpu.as_ref());
    Some(pb::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: value(all().filter_map(|cpu| cpu.usage_core_nano_seconds).map(|one| one.value).sum()),
        usage_nano_cores: value(all().filter_map(|cpu| cpu.usage_nano_cores).map(|one| one.value).sum()),
        psi: None,
    })
}

fn sum_memory(containers: &[pb::ContainerStats], at: i64) -> Option<pb::MemoryUsage> {
    let sum = |field: fn(&pb::MemoryUsage) -> Option<pb::UInt64Value>| {
        value(containers.iter().filter_map(|one| field(one.memory.as_ref()?)).map(|one| one.value).sum())
    };
    Some(pb::MemoryUsage {
        timestamp: at,
        working_set_bytes: sum(|memory| memory.working_set_bytes),
        available_bytes: None,
        usage_bytes: sum(|memory| memory.usage_bytes),
        rss_bytes: sum(|memory| memory.rss_bytes),
        page_faults: sum(|memory| memory.page_faults),
        major_page_faults: sum(|memory| memory.major_page_faults),
        psi: None,
    })
}

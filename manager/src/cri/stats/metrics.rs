//! ListMetricDescriptors and ListPodSandboxMetrics: the metrics that cAdvisor has for containers, under its names, so that
//! a kubelet can show them without it.
//!
//! Source: cri-tools `pkg/validate/pod.go` for the names that are expected; google/cadvisor `docs/storage/prometheus.md`
//! for what they mean.

use std::sync::Arc;

use tare_proto::runtime::v1 as pb;

use super::cgroup::{Cgroup, Usage};
use super::network::{self, Interface};
use super::processes::Processes;
use crate::cri::record::off_thread;
use crate::cri::rows::{Container, ContainerState, Pod, PodState};
use crate::cri::{Cri, now};
use crate::error::Result;
use pb::MetricType::{Counter, Gauge};

/// What every sample is labelled with.
const LABELS: &[&str] = &["container", "id", "image", "name", "namespace", "pod"];

/// One container, looked at.
struct Seen {
    row: Arc<Container>,
    usage: Usage,
    processes: Processes,
    /// Bytes and inodes of its own layer.
    layer: (u64, u64),
    /// Of the file system that it lies on: bytes, inodes, free inodes.
    disk: (u64, u64, u64),
}

impl Seen {
    fn limits(&self) -> pb::LinuxContainerResources {
        self.row.resources.clone().unwrap_or_default()
    }
}

/// Values of further labels, and the number.
type Sample = (Vec<String>, u64);

struct Family<S: ?Sized> {
    name: &'static str,
    help: &'static str,
    kind: pb::MetricType,
    more: &'static [&'static str],
    samples: fn(&S) -> Vec<Sample>,
}

const fn family<S>(
    name: &'static str,
    help: &'static str,
    kind: pb::MetricType,
    more: &'static [&'static str],
    samples: fn(&S) -> Vec<Sample>,
) -> Family<S> {
    Family { name, help, kind, more, samples }
}

fn one(value: u64) -> Vec<Sample> {
    vec![(Vec::new(), value)]
}

fn seconds(nanoseconds: u64) -> Vec<Sample> {
    one(nanoseconds / 1_000_000_000)
}

fn given(value: i64) -> Vec<Sample> {
    one(u64::try_from(value).unwrap_or(0))
}

fn stalled(seen: &Seen, which: usize, full: bool) -> Vec<Sample> {
    let pressure = seen.usage.pressure[which].and_then(|psi| if full { psi.full } else { psi.some });
    pressure.map(|psi| one(psi.total / 1_000_000)).unwrap_or_default()
}

fn io(seen: &Seen, operation: &str, bytes: bool) -> Vec<Sample> {
    let rows = seen.usage.io.iter().filter(|(_, kind, ..)| kind == operation);
    rows.map(|(device, _, amount, count)| (vec![device.clone()], if bytes { *amount } else { *count })).collect()
}

const CONTAINER: &[Family<Seen>] = &[
    family(
        "container_blkio_device_usage_total",
        "Bytes that went to and from a device",
        Counter,
        &["device", "operation"],
        |seen| {
            seen.usage.io.iter().map(|(device, kind, bytes, _)| (vec![device.clone(), kind.clone()], *bytes)).collect()
        },
    ),
    family("container_cpu_cfs_periods_total", "Periods of the scheduler that have passed", Counter, &[], |seen| {
        one(seen.usage.periods)
    }),
    family("container_cpu_cfs_throttled_periods_total", "Periods in which it was held back", Counter, &[], |seen| {
        one(seen.usage.throttled_periods)
    }),
    family("container_cpu_cfs_throttled_seconds_total", "Time for which it was held back", Counter, &[], |seen| {
        seconds(seen.usage.throttled)
    }),
    family("container_cpu_system_seconds_total", "Processor time in the kernel", Counter, &[], |seen| {
        seconds(seen.usage.cpu_system)
    }),
    family("container_cpu_usage_seconds_total", "Processor time", Counter, &["cpu"], |seen| {
        vec![(vec!["total".into()], seen.usage.cpu / 1_000_000_000)]
    }),
    family("container_cpu_user_seconds_total", "Processor time outside the kernel", Counter, &[], |seen| {
        seconds(seen.usage.cpu_user)
    }),
    family("container_file_descriptors", "Open files", Gauge, &[], |seen| one(seen.processes.files)),
    family("container_fs_inodes_free", "Free inodes of the file system", Gauge, &["device"], |seen| {
        vec![(vec![String::new()], seen.disk.2)]
    }),
    family("container_fs_inodes_total", "Inodes of the file system", Gauge, &["device"], |seen| {
        vec![(vec![String::new()], seen.disk.1)]
    }),
    family("container_fs_limit_bytes", "Size of the file system", Gauge, &["device"], |seen| {
        vec![(vec![String::new()], seen.disk.0)]
    }),
    family("container_fs_reads_bytes_total", "Bytes read", Counter, &["device"], |seen| io(seen, "Read", true)),
    family("container_fs_reads_total", "Reads", Counter, &["device"], |seen| io(seen, "Read", false)),
    family("container_fs_usage_bytes", "Bytes in the container's own layer", Gauge, &["device"], |seen| {
        vec![(vec![String::new()], seen.layer.0)]
    }),
    family("container_fs_writes_bytes_total", "Bytes written", Counter, &["device"], |seen| io(seen, "Write", true)),
    family("container_fs_writes_total", "Writes", Counter, &["device"], |seen| io(seen, "Write", false)),
    family("container_last_seen", "When it was last looked at, in seconds since the epoch", Gauge, &[], |_| {
        seconds(now().unsigned_abs())
    }),
    family("container_memory_cache", "Memory that caches files", Gauge, &[], |seen| one(seen.usage.cache)),
    family("container_memory_failcnt", "How often the limit was met", Counter, &[], |seen| {
        one(seen.usage.memory_failures)
    }),
    family("container_memory_failures_total", "Page faults", Counter, &["failure_type", "scope"], |seen| {
        let of = |kind: &str, count| (vec![kind.to_owned(), "container".to_owned()], count);
        vec![of("pgfault", seen.usage.faults), of("pgmajfault", seen.usage.major_faults)]
    }),
    family("container_memory_kernel_usage", "Memory of the kernel for it", Gauge, &[], |seen| {
        one(seen.usage.kernel_memory)
    }),
    family("container_memory_mapped_file", "Memory of mapped files", Gauge, &[], |seen| one(seen.usage.mapped_file)),
    family("container_memory_max_usage_bytes", "The most memory it has had", Gauge, &[], |seen| {
        one(seen.usage.memory_peak)
    }),
    family("container_memory_rss", "Memory of its own", Gauge, &[], |seen| one(seen.usage.rss)),
    family("container_memory_swap", "Memory that was swapped out", Gauge, &[], |seen| one(seen.usage.swap)),
    family("container_memory_usage_bytes", "Memory, caches included", Gauge, &[], |seen| one(seen.usage.memory)),
    family("container_memory_working_set_bytes", "Memory that could not be taken away at once", Gauge, &[], |seen| {
        one(seen.usage.working_set())
    }),
    family("container_oom_events_total", "Processes that were killed for want of memory", Counter, &[], |seen| {
        one(seen.usage.oom_kills)
    }),
    family(
        "container_pressure_cpu_stalled_seconds_total",
        "Time in which all waited for a processor",
        Counter,
        &[],
        |seen| stalled(seen, 0, true),
    ),
    family(
        "container_pressure_cpu_waiting_seconds_total",
        "Time in which some waited for a processor",
        Counter,
        &[],
        |seen| stalled(seen, 0, false),
    ),
    family(
        "container_pressure_io_stalled_seconds_total",
        "Time in which all waited for a device",
        Counter,
        &[],
        |seen| stalled(seen, 2, true),
    ),
    family(
        "container_pressure_io_waiting_seconds_total",
        "Time in which some waited for a device",
        Counter,
        &[],
        |seen| stalled(seen, 2, false),
    ),
    family(
        "container_pressure_memory_stalled_seconds_total",
        "Time in which all waited for memory",
        Counter,
        &[],
        |seen| stalled(seen, 1, true),
    ),
    family(
        "container_pressure_memory_waiting_seconds_total",
        "Time in which some waited for memory",
        Counter,
        &[],
        |seen| stalled(seen, 1, false),
    ),
    family("container_processes", "Processes", Gauge, &[], |seen| one(seen.processes.count)),
    family("container_sockets", "Open sockets", Gauge, &[], |seen| one(seen.processes.sockets)),
    family("container_spec_cpu_period", "Length of a period of the scheduler", Gauge, &[], |seen| {
        given(seen.limits().cpu_period)
    }),
    family("container_spec_cpu_quota", "Processor time in a period", Gauge, &[], |seen| given(seen.limits().cpu_quota)),
    family("container_spec_cpu_shares", "Share of the processors", Gauge, &[], |seen| given(seen.limits().cpu_shares)),
    family("container_spec_memory_limit_bytes", "Limit of memory, 0 for none", Gauge, &[], |seen| {
        one(seen.usage.limit.unwrap_or(0))
    }),
    family(
        "container_spec_memory_reservation_limit_bytes",
        "Memory that is kept for it, 0 for none",
        Gauge,
        &[],
        |_| one(0),
    ),
    family("container_spec_memory_swap_limit_bytes", "Limit of memory and swap, 0 for none", Gauge, &[], |seen| {
        one(seen.usage.swap_limit.unwrap_or(0))
    }),
    family("container_start_time_seconds", "When it was started, in seconds since the epoch", Gauge, &[], |seen| {
        seconds(seen.row.started_at.unsigned_abs())
    }),
    family("container_threads", "Threads", Gauge, &[], |seen| one(seen.usage.processes)),
    family("container_threads_max", "Limit of threads, 0 for none", Gauge, &[], |seen| {
        one(seen.usage.processes_limit.unwrap_or(0))
    }),
    family("container_ulimits_soft", "Limits of its first process", Gauge, &["ulimit"], |seen| {
        seen.processes.open_files_limit.map(|limit| vec![(vec!["max_open_files".into()], limit)]).unwrap_or_default()
    }),
];

fn interface(all: &[Interface], number: fn(&Interface) -> u64) -> Vec<Sample> {
    all.iter().map(|one| (vec![one.name.clone()], number(one))).collect()
}

const POD: &[Family<[Interface]>] = &[
    network_family("container_network_receive_bytes_total", "Bytes received", |all| {
        interface(all, |one| one.received[0])
    }),
    network_family("container_network_receive_errors_total", "Errors in receiving", |all| {
        interface(all, |one| one.received[2])
    }),
    network_family("container_network_receive_packets_dropped_total", "Packets dropped in receiving", |all| {
        interface(all, |one| one.received[3])
    }),
    network_family("container_network_receive_packets_total", "Packets received", |all| {
        interface(all, |one| one.received[1])
    }),
    network_family("container_network_transmit_bytes_total", "Bytes sent", |all| interface(all, |one| one.sent[0])),
    network_family("container_network_transmit_errors_total", "Errors in sending", |all| {
        interface(all, |one| one.sent[2])
    }),
    network_family("container_network_transmit_packets_dropped_total", "Packets dropped in sending", |all| {
        interface(all, |one| one.sent[3])
    }),
    network_family("container_network_transmit_packets_total", "Packets sent", |all| interface(all, |one| one.sent[1])),
];

const fn network_family(
    name: &'static str,
    help: &'static str,
    samples: fn(&[Interface]) -> Vec<Sample>,
) -> Family<[Interface]> {
    Family { name, help, kind: Counter, more: &["interface"], samples }
}

impl<S: ?Sized> Family<S> {
    fn descriptor(&self) -> pb::MetricDescriptor {
        let keys = LABELS.iter().chain(self.more).map(|key| (*key).to_owned());
        pb::MetricDescriptor { name: self.name.into(), help: self.help.into(), label_keys: keys.collect() }
    }

    fn metrics(&self, of: &S, labels: &[String], at: i64) -> Vec<pb::Metric> {
        let samples = (self.samples)(of).into_iter();
        let metrics = samples.map(|(more, number)| pb::Metric {
            name: self.name.into(),
            timestamp: at,
            metric_type: self.kind.into(),
            label_values: labels.iter().cloned().chain(more).collect(),
            value: super::value(number),
        });
        metrics.collect()
    }
}

pub fn descriptors() -> Vec<pb::MetricDescriptor> {
    CONTAINER.iter().map(Family::descriptor).chain(POD.iter().map(Family::descriptor)).collect()
}

impl Cri {
    pub(in crate::cri) async fn list_metrics(&self) -> Result<Vec<pb::PodSandboxMetrics>> {
        let cri = self.clone();
        off_thread(move || {
            let at = now();
            let pods = cri.pods.all().into_iter().map(|pod| pod.row()).filter(|row| row.state() == PodState::Ready);
            Ok(pods.map(|row| cri.metrics_of(&row, at)).collect())
        })
        .await
    }

    fn metrics_of(&self, pod: &Pod, at: i64) -> pb::PodSandboxMetrics {
        let all = Some(pod.pid).filter(|_| !pod.is_on_host_network()).and_then(network::interfaces).unwrap_or_default();
        let all: Vec<Interface> = all.into_iter().filter(|interface| interface.name != "lo").collect();
        let own = labels(pod, None);
        let disk = disk(&self.parts.root);
        let containers = self.containers_of(&pod.id).into_iter().map(|container| container.row());
        let containers = containers.filter(|row| row.state() == ContainerState::Running).filter_map(|row| {
            let cgroup = Cgroup::of(row.pid)?;
            let (usage, processes) = (cgroup.details()?, Processes::of(&cgroup, row.pid));
            let layer = self.writable_layer(&row.id, at).unwrap_or_default();
            let number = |value: Option<pb::UInt64Value>| value.map_or(0, |value| value.value);
            let layer = (number(layer.used_bytes), number(layer.inodes_used));
            let labels = labels(pod, Some(&row));
            let seen = Seen { row: row.clone(), usage, processes, layer, disk };
            let metrics = CONTAINER.iter().flat_map(|family| family.metrics(&seen, &labels, at)).collect();
            Some(pb::ContainerMetrics { container_id: row.id.clone(), metrics })
        });
        pb::PodSandboxMetrics {
            pod_sandbox_id: pod.id.clone(),
            metrics: POD.iter().flat_map(|family| family.metrics(&all, &own, at)).collect(),
            container_metrics: containers.collect(),
        }
    }
}

/// In the order of [`LABELS`]; a pod's own metrics are of no container.
fn labels(pod: &Pod, container: Option<&Container>) -> Vec<String> {
    let metadata = pod.config().metadata.clone().unwrap_or_default();
    let name = container.and_then(|row| row.config().metadata.clone()).unwrap_or_default().name;
    vec![
        name,
        container.map_or_else(|| pod.id.clone(), |row| row.id.clone()),
        container.map(|row| row.image_ref.clone()).unwrap_or_default(),
        container.map_or_else(|| pod.id.clone(), |row| row.id.clone()),
        metadata.namespace,
        metadata.name,
    ]
}

fn disk(root: &std::path::Path) -> (u64, u64, u64) {
    rustix::fs::statvfs(root).map_or((0, 0, 0), |stat| (stat.f_blocks * stat.f_frsize, stat.f_files, stat.f_ffree))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_has_as_many_labels_as_its_description() {
        let usage = Usage { io: vec![("8:0".into(), "Read".into(), 1, 2)], ..Usage::default() };
        let (row, processes) = (Arc::default(), Processes { open_files_limit: Some(1), ..Default::default() });
        let seen = Seen { row, usage, processes, layer: (0, 0), disk: (0, 0, 0) };
        let labels = vec![String::new(); LABELS.len()];
        let mut names = Vec::new();
        for family in CONTAINER {
            let keys = family.descriptor().label_keys.len();
            let samples = family.metrics(&seen, &labels, 1);
            assert!(samples.iter().all(|sample| sample.label_values.len() == keys), "{}", family.name);
            names.push(family.name);
        }
        let all = [Interface { name: "eth0".into(), ..Interface::default() }];
        for family in POD {
            let samples = family.metrics(&all, &labels, 1);
            assert_eq!(samples[0].label_values.len(), family.descriptor().label_keys.len(), "{}", family.name);
            names.push(family.name);
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), descriptors().len()), (count, count));
    }
}

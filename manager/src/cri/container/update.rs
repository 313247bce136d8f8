//! UpdateContainerResources: new limits, for a running container and for when it is started.

use prost_types::Any;
use serde_json::Value;
use tare_proto::containerd::services::containers::v1::Container as Record;
use tare_proto::containerd::task::v3 as shim;
use tare_proto::runtime::v1 as pb;

use crate::cri::record::off_thread;
use crate::cri::rows::ContainerState;
use crate::cri::{Cri, namespace, spec};
use crate::error::{Error, Result};
use crate::names::Id;

const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

impl Cri {
    pub(in crate::cri) async fn update_resources(&self, request: pb::UpdateContainerResourcesRequest) -> Result<()> {
        let container = self.containers.find(&request.container_id)?;
        let Some(asked) = request.linux else { return Ok(()) };
        let _turn = container.turn.write().await;
        let state = container.row().state();
        if state == ContainerState::Removing {
            return Err(Error::FailedPrecondition(format!("container {:?} is in removing state", container.id)));
        }
        let new = spec::resources(&asked, &self.host)?;
        if state == ContainerState::Running {
            let task = self.parts.tasks.get(&namespace(), &Id::parse(&container.id)?)?;
            let resources = Some(Any { type_url: RESOURCES.into(), value: new.to_string().into_bytes() });
            let id = container.id.clone();
            let request = shim::UpdateTaskRequest { id, resources, annotations: request.annotations };
            task.call::<()>("Update", &request).await?;
        }
        let (cri, id) = (self.clone(), container.id.clone());
        off_thread(move || cri.remember(&Id::parse(&id)?, new)).await?;
        container
            .change(move |row| {
                merge(row.resources.get_or_insert_default(), &asked);
                Ok(())
            })
            .await?;
        Ok(())
    }

    /// Writes them into the container's specification.
    fn remember(&self, id: &Id, new: Value) -> Result<()> {
        let mut record: Record = self.parts.containers.get(&namespace(), id)?;
        let any = record.spec.get_or_insert_default();
        let mut spec: Value = serde_json::from_slice(&any.value)
            .map_err(|error| Error::Internal(format!("reading the specification of container {id}: {error}")))?;
        lay_over(&mut spec["linux"]["resources"], new);
        any.value = spec.to_string().into_bytes();
        self.parts.containers.update(&namespace(), &record, &["spec".into()])?;
        Ok(())
    }
}

/// What is new replaces what is there; what it does not name stays.
fn lay_over(old: &mut Value, new: Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                lay_over(old.entry(key).or_insert(Value::Null), value);
            }
        }
        (old, new) => *old = new,
    }
}

/// Zero and empty are what was not given.
fn merge(old: &mut pb::LinuxContainerResources, new: &pb::LinuxContainerResources) {
    for (old, new) in [
        (&mut old.cpu_period, new.cpu_period),
        (&mut old.cpu_quota, new.cpu_quota),
        (&mut old.cpu_shares, new.cpu_shares),
        (&mut old.memory_limit_in_bytes, new.memory_limit_in_bytes),
        (&mut old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes),
        (&mut old.oom_score_adj, new.oom_score_adj),
    ] {
        if new != 0 {
            *old = new;
        }
    }
    for (old, new) in [(&mut old.cpuset_cpus, &new.cpuset_cpus), (&mut old.cpuset_mems, &new.cpuset_mems)] {
        if !new.is_empty() {
            old.clone_from(new);
        }
    }
    if !new.hugepage_limits.is_empty() {
        old.hugepage_limits.clone_from(&new.hugepage_limits);
    }
    old.unified.extend(new.unified.iter().map(|(key, value)| (key.clone(), value.clone())));
}

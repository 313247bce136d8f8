//! `CreateSandbox` and `StartSandbox`.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::SystemTime;

use tare_proto::any;
use tare_proto::containerd::runtime::sandbox::v1::{
    CreateSandboxRequest, CreateSandboxResponse, StartSandboxRequest, StartSandboxResponse,
};
use tare_proto::runtime::v1::PodSandboxConfig;
use tare_proto::ttrpc::{Code, Error};

use super::spec::{self, Surroundings};
use super::{Sandbox, root};
use crate::args::is_name;
use crate::cgroup::Cgroups;
use crate::children::Child;
use crate::error::{Doing as _, Failed};
use crate::options::Options;
use crate::reactor::Latch;
use crate::runtime::{self, Runtime, Streams};
use crate::task::{Supervisor, failed, invalid, precondition, timestamp};
use crate::{log, sys};

/// The pod's configuration, as CRI has it.
const CONFIG: &str = "runtime.v1.PodSandboxConfig";

impl Supervisor {
    pub(super) async fn create_sandbox(
        self: &Rc<Self>,
        request: CreateSandboxRequest,
    ) -> Result<CreateSandboxResponse, Error> {
        check(&request)?;
        if let Some(there) = &*self.sandbox.borrow() {
            return Err(Error::new(Code::AlreadyExists, format!("sandbox {}: already exists", there.id)));
        }
        let _reserved = self.reserve(&request.sandbox_id)?;
        let pod = pod(&request)?;
        let bundle = Path::new(&request.bundle_path);
        let options = Options::read(bundle).map_err(invalid)?.unwrap_or_default();
        let owner = owner_of(&request.netns_path)?;
        let surroundings = Surroundings {
            id: &request.sandbox_id,
            netns: &request.netns_path,
            userns: owner.as_ref().map(|fd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())),
            shm: Some(bundle.join("shm")).filter(|path| path.is_dir()),
            annotations: &request.annotations,
            lowest_oom_score: lowest_oom_score()?,
        };
        let spec = spec::of(&pod, &surroundings).map_err(invalid)?;
        root::make(bundle)?;
        let file = bundle.join("config.json");
        fs::write(&file, spec.to_string()).doing(|| format!("writing {}", file.display()))?;
        let runtime = Runtime::new(&options, &self.namespace, bundle, self.debug);
        runtime.write_name()?;
        let init = self.create_init(&request, &options, &runtime).await?;
        let sandbox = Rc::new(Sandbox {
            id: request.sandbox_id,
            bundle: bundle.to_owned(),
            runtime,
            cgroups: Cgroups::of(init.pid()),
            init,
            created: SystemTime::now(),
            started: Cell::new(false),
            exit: Latch::new(),
        });
        *self.sandbox.borrow_mut() = Some(sandbox.clone());
        self.watch_sandbox(sandbox);
        Ok(CreateSandboxResponse {})
    }

    /// Runs the runtime's `create`; what it has made is deleted again if the process cannot be watched.
    async fn create_init(
        &self,
        request: &CreateSandboxRequest,
        options: &Options,
        runtime: &Runtime,
    ) -> Result<Child, Error> {
        let pid_file = Path::new(&request.bundle_path).join("init.pid");
        let mut words = vec![OsStr::new("create"), "--bundle".as_ref(), request.bundle_path.as_ref()];
        words.extend([OsStr::new("--pid-file"), pid_file.as_ref()]);
        words.extend(options.no_pivot_root.then_some(OsStr::new("--no-pivot")));
        words.extend(options.no_new_keyring.then_some(OsStr::new("--no-new-keyring")));
        words.push(request.sandbox_id.as_ref());
        let _hold = self.children.hold();
        let created = runtime.run(&self.children, &words, Streams::null()).await;
        created.map_err(|error| failed(format!("OCI runtime create failed: {error}")))?;
        match runtime::read_pid_file(&self.children, &pid_file) {
            Ok(init) => Ok(init),
            Err(error) => {
                let words = ["delete", "--force", &request.sandbox_id];
                if let Err(error) = runtime.run(&self.children, &words, Streams::null()).await {
                    log::warn(&format!("undoing the creation of {}: {error}", request.sandbox_id));
                }
                Err(error.into())
            }
        }
    }

    pub(super) async fn start_sandbox(&self, request: StartSandboxRequest) -> Result<StartSandboxResponse, Error> {
        let sandbox = self.find_sandbox(&request.sandbox_id)?;
        if sandbox.exit.get().is_some() || sandbox.started.replace(true) {
            let word = if sandbox.exit.get().is_some() { "stopped" } else { "started" };
            return Err(precondition(format!("cannot start a {word} sandbox: failed precondition")));
        }
        let started = sandbox.runtime.run(&self.children, &["start", &sandbox.id], Streams::null()).await;
        if let Err(error) = started {
            sandbox.started.set(false);
            return Err(failed(format!("OCI runtime start failed: {error}")));
        }
        Ok(StartSandboxResponse { pid: sandbox.init.pid(), created_at: timestamp(sandbox.created) })
    }
}

fn check(request: &CreateSandboxRequest) -> Result<(), Error> {
    if !is_name(&request.sandbox_id) {
        return Err(invalid(format!(
            "sandbox_id {:?}: an id is 1 to 200 letters, digits and _+-.",
            request.sandbox_id
        )));
    }
    for (field, path) in [("bundle_path", &request.bundle_path), ("netns_path", &request.netns_path)] {
        let may_be_empty = field == "netns_path";
        if !(Path::new(path).is_absolute() || may_be_empty && path.is_empty()) {
            return Err(invalid(format!("{field} {path:?}: the path is not absolute")));
        }
    }
    Ok(())
}

/// Without options the pod is one with defaults.
fn pod(request: &CreateSandboxRequest) -> Result<PodSandboxConfig, Error> {
    let Some(options) = request.options.as_ref().filter(|any| !any.type_url.is_empty()) else {
        return Ok(PodSandboxConfig::default());
    };
    let pod = any::unpack(options, CONFIG).map_err(|error| invalid(format!("options: {error}")))?;
    pod.ok_or_else(|| invalid(format!("options of type {}: {CONFIG} is known", options.type_url)))
}

/// The user namespace that owns a network namespace, if it is not ours: a pod with ids of its own lives in it, or it could
/// not configure its network.
fn owner_of(netns: &str) -> Result<Option<OwnedFd>, Failed> {
    if netns.is_empty() {
        return Ok(None);
    }
    let netns_file = fs::File::open(netns).doing(|| format!("opening the network namespace {netns}"))?;
    let doing = || format!("finding the user namespace of {netns}");
    let owner = sys::owner_of_namespace(&netns_file).doing(doing)?;
    let own = rustix::fs::stat("/proc/self/ns/user").doing(doing)?;
    let found = rustix::fs::fstat(&owner).doing(doing)?;
    Ok(Some(owner).filter(|_| (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino)))
}

/// Our own score: without `CAP_SYS_RESOURCE`, nobody whom we start may have a lower one.
///
/// Source: proc_pid_oom_score_adj(5).
fn lowest_oom_score() -> Result<i32, Failed> {
    const CAP_SYS_RESOURCE: u32 = 24;
    let read = |path: &str| fs::read_to_string(path).doing(|| format!("reading {path}"));
    let status = read("/proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0);
    if effective >> CAP_SYS_RESOURCE & 1 == 1 {
        return Ok(-1000);
    }
    Ok(read("/proc/self/oom_score_adj")?.trim().parse().unwrap_or(0))
}

//! A container from bundle to gate: the steps that `create` and `run` share.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::SystemTime;

use rustix::process::prlimit;

use crate::bundle::{self, Bundle};
use crate::cgroup::{Cgroup, CgroupPath, Settings};
use crate::child::network::Aside;
use crate::child::{self, Init, Report, Step, user_namespace};
use crate::cli::{Cgroups, Error, Global};
use crate::error::{Doing as _, Failed};
use crate::handover::{seccomp_listener, send_pidfd, write_pid_file};
use crate::hooks::{self, When};
use crate::mount::root::Target;
use crate::net_devices;
use crate::notify::{self, Manager, Relay};
use crate::plan::{self, CgroupView, Chroot, Gate, Plan, Preserved, Receiver, Terminal, scheduling};
use crate::seccomp::{self, Instruction, Program};
use crate::sentence::{last_steps, limit_sentence, sentence};
use crate::state::{Id, SavedFilter, State, StateDir, start_time};
use crate::systemd::{Started, Unit};
use crate::{rootless, spec};

/// What the command line says beside the bundle.
pub struct Options {
    /// Gets the terminal's master.
    pub terminal: Option<Receiver>,
    /// Gets a handle to the first process.
    pub pidfd_socket: Option<OwnedFd>,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    pub preserved: Preserved,
    /// Who is to be told that the container is ready.
    pub manager: Option<Manager>,
}

/// Who lets the program run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The same command, with something to do before.
    Now,
    /// The same command. If the child need not wait anywhere before its gate, it finds that open, and is spared the time
    /// that it takes two processors to answer one another.
    AtOnce,
    /// `tare start`.
    Later,
}

/// A container whose first process waits at its gate. Dropped before [`Container::keep`], everything made for it is undone.
pub struct Container {
    pub init: Init,
    ground: Ground,
    relay: Option<Relay>,
    program: String,
    /// Whether the gate was opened before the child came to it.
    open: bool,
}

/// What is there before a container's first process: its folder with what is intended, its unit if systemd is asked, and
/// its cgroups. Dropped before [`Container::keep`], they are undone.
pub struct Ground {
    pub state: State,
    cgroup: Option<Cgroup>,
    settings: Option<Settings>,
    unit: Option<Started>,
    resources: spec::Resources,
    entry: StateDir,
}

impl Ground {
    /// # Errors
    /// What cannot be done, by name; then nothing is left of it.
    pub fn lay(
        global: &Global,
        id: &Id,
        bundle: &mut Bundle,
        filter: Option<&Program>,
        tells_when_ready: bool,
    ) -> Result<Ground, Error> {
        let (path, unit) = cgroup_place(global, bundle.linux(), id)?;
        let resources = bundle.linux().resources.clone().unwrap_or_default();
        warn_of_kernel_memory(global, &resources);
        let mut settings = path.as_ref().map(|path| Settings::for_create(path, &resources)).transpose()?;
        if let Some(settings) = &mut settings {
            if rootless::inside() {
                settings.devices = None; // which a user namespace forbids all of anyway
            }
            settings.visible = bundle.spec.mounts.iter().any(|mount| mount.kind == "cgroup");
        }
        let state = intent(id, bundle, path.clone(), unit.clone(), filter);
        let entry = StateDir::claim(&global.root, &state)?; // on disk before any side effect
        if tells_when_ready {
            notify::prepare(entry.path(), bundle)?;
        }
        let version_1 = path.as_ref().is_some_and(CgroupPath::is_version_1);
        let start_unit = |unit: Unit| unit.start(id.as_str(), &bundle.spec.annotations, &resources, version_1);
        let unit = unit.map(start_unit).transpose()?;
        let cgroup = match (&path, &settings) {
            (Some(path), Some(settings)) => {
                Some(Cgroup::create(path, settings, unit.as_ref().and_then(Started::holder))?)
            }
            _ => None,
        };
        if let (Some(cgroup), Some(owner)) = (&cgroup, cgroup_owner(bundle)) {
            cgroup.delegate(owner)?;
        }
        Ok(Ground { state, cgroup, settings, unit, resources, entry })
    }

    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// # Errors
    /// The disk is full, …
    pub fn note_init(&self) -> Result<(), crate::state::Error> {
        self.entry.note_init(&self.state)
    }

    /// Writes the state again, with what has come to be known since.
    ///
    /// # Errors
    /// The disk is full, …
    pub fn rewrite_state(&self) -> Result<(), crate::state::Error> {
        self.entry.write(&self.state)
    }

    /// The first process is there: systemd is told the limits, and they are set once more.
    ///
    /// # Errors
    /// One was refused.
    pub fn settle(&mut self) -> Result<(), Error> {
        if let (Some(unit), Some(cgroup), Some(settings)) = (&mut self.unit, &self.cgroup, &self.settings) {
            unit.hand_over(&self.resources, cgroup.path().is_version_1())?;
            cgroup.update(settings)?; // all of them: systemd rounds, and has other ideas of some
        }
        Ok(())
    }

    /// A container with its first process.
    pub fn stand(self, init: Init, bundle: &Bundle) -> Container {
        Container { init, ground: self, relay: None, program: bundle.process().args[0].clone(), open: true }
    }
}

impl Container {
    /// Makes everything up to the gate.
    ///
    /// # Errors
    /// What cannot be done, by name; then nothing is left of it.
    pub fn create(
        global: &Global,
        id: &Id,
        mut bundle: Bundle,
        options: Options,
        start: Start,
    ) -> Result<Container, Error> {
        if rootless::unprivileged() {
            rootless::enter(bundle.linux())?;
        }
        let network = Aside::begin(&bundle); // first: it takes about as long as the rest
        let filter = bundle.linux().seccomp.as_ref().map(seccomp::compile).transpose()?;
        let mut ground = Ground::lay(global, id, &mut bundle, filter.as_ref(), options.manager.is_some())?;
        let relay = match (&options.manager, start) {
            (Some(manager), Start::Now | Start::AtOnce) => Some(Relay::begin(manager, ground.entry.path())?),
            _ => None,
        };
        let join = ground.cgroup().map(Cgroup::join).transpose()?.unwrap_or_default();
        let into = join.into.as_ref().map(std::os::fd::AsFd::as_fd);
        let socket = options.pidfd_socket.as_ref();
        let (no_pivot, keyring) =
            (options.no_pivot, (!options.no_new_keyring).then(|| format!("_ses.{}", id.as_str())));
        let tasks = join.tasks;
        let plan = plan(
            &bundle,
            ground.cgroup(),
            filter,
            tasks,
            options.terminal,
            no_pivot,
            keyring,
            options.preserved,
            network.is_some(),
            global,
        )
        .map_err(during_init)?;
        global
            .log
            .debug(&format!("{}: nsexec container setup: what the first process will do is decided", id.as_str()));
        let gate = if start == Start::Later { ground.entry.make_gate()? } else { Gate::Parent };
        let init = child::spawn(&plan, &gate, into)?; // from here on there is a process
        let pid = init.pid.as_raw_nonzero().get();
        ground.state.pid = pid;
        ground.state.start_time = start_time(pid).map_or(0, |(time, _)| time);
        ground.note_init()?;
        if let Some(network) = network {
            init.give(network.ready()?.as_fd())?; // before all else that the child is told
        }
        if plan.namespaces.mapped_later {
            limit_from_outside(&init, bundle.process())?;
        }
        score(&init, bundle.process())?;
        net_devices::move_in(&bundle.linux().net_devices, pid)?;
        if let Some(socket) = socket {
            send_pidfd(socket.as_fd(), init.pidfd.as_fd(), b"standard")?;
        }
        let at_once = start == Start::AtOnce && ground.unit.is_none();
        global.log.debug(&format!("{}: child process in init(): it is {pid}, on its way to its gate", id.as_str()));
        let open = at_once && !plan.waits_before_gate() && ground.state.hooks.start_container.is_empty();
        if open {
            init.go_on()?;
        }
        let mut container = Container { relay, open, ..ground.stand(init, &bundle) };
        if let Err(error) = container.walk_to_gate(&plan, &bundle) {
            container.fail(global);
            return Err(error);
        }
        global
            .log
            .debug(&format!("{}: init: closing the pipe to signal completion: it waits at its gate", id.as_str()));
        container.ground.settle()?; // only now, when what the child had to say has been heard
        Ok(container)
    }

    /// Answers the child until it waits at its gate.
    fn walk_to_gate(&self, plan: &Plan, bundle: &Bundle) -> Result<(), Error> {
        loop {
            match self.init.next()? {
                Some(Report::Waits(Step::Gate, _)) => return Ok(()),
                Some(Report::Waits(Step::Mappings, _)) => {
                    let linux = bundle.linux();
                    user_namespace::write_mappings(self.init.pid, &linux.uid_mappings, &linux.gid_mappings)?;
                }
                Some(Report::Waits(Step::Hooks, _)) => {
                    hooks::run(When::Prestart, &self.ground.state)?;
                    hooks::run(When::CreateRuntime, &self.ground.state)?;
                    hooks::run(When::CreateContainer, &self.ground.state)?;
                }
                Some(Report::Waits(Step::SeccompListener, number)) => {
                    seccomp_listener(&self.init, plan.process.filter.as_ref(), number, &self.ground.state, "creating")?;
                }
                Some(Report::Waits(step, _)) => return Err(Error::Start(format!("waiting at {step:?}: not expected"))),
                Some(Report::Stuck(stuck)) => {
                    let what = sentence(stuck, plan, bundle, &self.program);
                    return Err(Error::Start(format!("error during container init: {what}")));
                }
                None => return Err(Error::Start(self.silent_end())),
            }
            self.init.go_on()?;
        }
    }

    /// Opens the gate of a container that was not made with [`Start::Later`], and returns when the program runs.
    ///
    /// # Errors
    /// A hook failed, or the program cannot be executed.
    pub fn start(&self) -> Result<(), Error> {
        if !self.open {
            hooks::run(When::StartContainer, &self.ground.state)?;
            self.init.go_on()?;
        }
        match self.init.next()? {
            None => Ok(()),
            Some(Report::Stuck(stuck)) => Err(Error::at_the_end(stuck, last_steps(stuck, &self.program))),
            Some(Report::Waits(step, _)) => Err(Error::Start(format!("waiting at {step:?}: not expected"))),
        }
    }

    /// Undoes everything, as a container's end is: the hooks after it run too. Source: runtime-spec runtime.md, "Lifecycle".
    pub fn fail(self, global: &Global) {
        let state = self.ground.state.clone();
        drop(self);
        hooks::run_all_after_end(&state, &mut |text| global.log.warn(&text));
    }

    /// # Errors
    /// The file cannot be written.
    pub fn write_pid(&self, file: Option<&Path>) -> Result<(), Failed> {
        file.map_or(Ok(()), |file| write_pid_file(file, self.ground.state.pid))
    }

    /// Commits: from here on nothing is undone.
    pub fn keep(mut self) -> Kept {
        let mut ground = self.ground;
        ground.entry.commit();
        self.init.keep();
        if let Some(cgroup) = &mut ground.cgroup {
            cgroup.keep();
        }
        if let Some(unit) = &mut ground.unit {
            unit.keep();
        }
        Kept { init: self.init, state: ground.state, relay: self.relay }
    }

    /// Why a child may end without a word: somebody killed it, most likely the kernel for want of memory.
    fn silent_end(&self) -> String {
        let hint = match &self.ground.state.process.oom_score_adj {
            _ if self.ground.cgroup.is_some() => " (killed; is the memory limit too small for it?)",
            _ => " (killed)",
        };
        format!("the container's first process ended before its program ran{hint}")
    }
}

/// A container that runs, or waits for `start`.
pub struct Kept {
    pub init: Init,
    pub state: State,
    /// Waits for the container to be ready, if somebody wants to know.
    pub relay: Option<Relay>,
}

/// What went wrong in preparing for the child is told as what goes wrong in it.
fn during_init(error: Error) -> Error {
    match error {
        Error::Failed(failed) | Error::Bundle(bundle::Error::Failed(failed)) => {
            Error::Start(format!("error during container init: {failed}"))
        }
        other => other,
    }
}

/// The kernel has no limits of its own for these any more: they count as memory. Callers still send them.
fn warn_of_kernel_memory(global: &Global, resources: &spec::Resources) {
    let memory = resources.memory.as_ref();
    for (field, limit) in [
        ("kernel", memory.and_then(|memory| memory.kernel)),
        ("kernelTCP", memory.and_then(|memory| memory.kernel_tcp)),
    ] {
        if limit.is_some_and(|limit| limit > 0) {
            global.log.warn(&format!("linux.resources.memory.{field} is ignored: memory.limit holds for all memory"));
        }
    }
}

/// Where the container's cgroups will be, and what systemd will know them by if it is to make them.
fn cgroup_place(global: &Global, linux: &spec::Linux, id: &Id) -> Result<(Option<CgroupPath>, Option<Unit>), Error> {
    let path = linux.cgroups_path.as_str();
    Ok(match global.cgroups {
        Cgroups::None => (None, None),
        Cgroups::Files if global.rootless => {
            let path = CgroupPath::resolve(Some(path), id.as_str())?;
            (path.permitted(linux.resources.as_ref().unwrap_or(&spec::Resources::default()))?, None)
        }
        Cgroups::Files => (Some(CgroupPath::resolve(Some(path), id.as_str())?), None),
        Cgroups::Systemd => {
            let unit = Unit::resolve(path, id.as_str(), rootless::inside())?;
            (Some(unit.cgroup()?), Some(unit))
        }
    })
}

/// Who on the host gets the cgroup: the user that the container's first process is, if it can write to its cgroups and sees
/// no others. Root owns it anyway.
fn cgroup_owner(bundle: &Bundle) -> Option<u32> {
    bundle.namespace("cgroup").filter(|namespace| namespace.path.is_empty())?;
    let writable = |mount: &spec::Mount| {
        matches!(mount.kind.as_str(), "cgroup" | "cgroup2") && !mount.options.iter().any(|word| word == "ro")
    };
    bundle.spec.mounts.iter().any(writable).then_some(())?;
    let (uid, linux) = (bundle.process().user.uid, bundle.linux());
    if rootless::inside_own() || bundle.namespace("user").is_none() {
        return (uid != 0).then_some(uid); // as we see it too
    }
    let mapping =
        |mapping: &&spec::IdMapping| uid.checked_sub(mapping.container_id).is_some_and(|above| above < mapping.size);
    let mapping = linux.uid_mappings.iter().find(mapping)?;
    Some(mapping.host_id + (uid - mapping.container_id))
}

/// What is written down before anything is made.
fn intent(id: &Id, bundle: &Bundle, cgroup: Option<CgroupPath>, unit: Option<Unit>, filter: Option<&Program>) -> State {
    State {
        oci_version: bundle.spec.oci_version.clone(),
        id: id.clone(),
        pid: 0,
        start_time: 0,
        bundle: bundle.dir.clone(),
        rootfs: bundle.rootfs.clone(),
        created: SystemTime::now(),
        annotations: bundle.spec.annotations.clone(),
        cgroup,
        unit,
        process: bundle.process().clone(),
        hooks: bundle.spec.hooks.clone().unwrap_or_default(),
        filter: filter.map(SavedFilter::of),
        personality: bundle.linux().personality.as_ref().and_then(|asked| plan::personality(&asked.domain)),
        own_pid_namespace: bundle.namespace("pid").is_some_and(|namespace| namespace.path.is_empty()),
        namespaces: bundle
            .linux()
            .namespaces
            .iter()
            .filter_map(|namespace| plan::namespace_flag(&namespace.kind))
            .sum(),
        descriptors: if bundle.process().terminal { Vec::new() } else { crate::criu::descriptors::ours() },
    }
}

impl SavedFilter {
    pub fn of(program: &Program) -> SavedFilter {
        let instructions = program.instructions.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect();
        SavedFilter { flags: program.flags, instructions, listener: program.listener.clone() }
    }

    pub fn program(&self) -> Program {
        let instructions = self.instructions.iter().map(|&(code, jt, jf, k)| Instruction { code, jt, jf, k }).collect();
        Program { instructions, flags: self.flags, listener: self.listener.clone() }
    }
}

#[allow(clippy::too_many_arguments)] // each is a different thing, and all of them are only passed on
fn plan(
    bundle: &Bundle,
    cgroup: Option<&Cgroup>,
    filter: Option<Program>,
    cgroup_tasks: Vec<OwnedFd>,
    terminal: Option<Receiver>,
    no_pivot: bool,
    keyring: Option<String>,
    preserved: Preserved,
    network_aside: bool,
    global: &Global,
) -> Result<Plan, Error> {
    let linux = bundle.linux();
    let mut namespaces = plan::namespaces(bundle)?;
    if network_aside {
        namespaces.network_aside = true;
        namespaces.new &= !(libc::CLONE_NEWNET as u64);
    }
    let own_mounts = bundle.namespace("mount").is_some_and(|namespace| namespace.path.is_empty());
    // Without cgroups of its own it stays in ours, and sees those.
    let seen = bundle.spec.mounts.iter().any(|mount| mount.kind.starts_with("cgroup"));
    let around = if cgroup.is_none() && seen { Some(Cgroup::open(CgroupPath::around()?)) } else { None };
    let view = cgroup_view(cgroup.or(around.as_ref()), namespaces.new_cgroup);
    let filesystem = if own_mounts { Some(plan::filesystem(bundle, &view, no_pivot)?) } else { None };
    let root = root_folder(bundle)?;
    let mut process =
        plan::process(bundle.process(), filter, root.as_fd(), preserved, &mut |text| global.log.warn(&text))?;
    process.keyring = keyring.map(|name| std::ffi::CString::new(name).expect("an id has no zero byte"));
    if namespaces.mapped_later {
        process.rlimits.clear(); // set from outside
    }
    process.scheduling.memory_policy = linux.memory_policy.as_ref().map(scheduling::memory_policy).transpose()?;
    process.personality = linux.personality.as_ref().and_then(|personality| plan::personality(&personality.domain));
    let c_string = |field: &str, text: &str| plan::c_string(field, text);
    let name = |field, text: &String| (!text.is_empty()).then(|| c_string(field, text)).transpose();
    let host_mounts = bundle.namespace("mount").is_none();
    if host_mounts && !bundle.spec.mounts.is_empty() {
        global.log.warn("mounts are ignored: without a mount namespace they would be the host's");
    }
    Ok(Plan {
        chroot: match bundle.namespace("mount") {
            None => Some(Chroot::Here(root)),
            Some(joined) if !joined.path.is_empty() => {
                Some(Chroot::There(c_string("root.path", &bundle.rootfs.to_string_lossy())?))
            }
            Some(_) => None,
        },
        hostname: name("hostname", &bundle.spec.hostname)?,
        domainname: name("domainname", &bundle.spec.domainname)?,
        namespaces,
        cgroup_tasks,
        filesystem,
        sysctl: linux
            .sysctl
            .iter()
            .map(|(key, value)| {
                let path = format!("sys/{}", crate::bundle::sysctl_path(key));
                Ok((c_string("linux.sysctl", &path)?, c_string("linux.sysctl", value)?))
            })
            .collect::<Result<_, Failed>>()?,
        terminal: terminal.map(|receiver| terminal_of(bundle.process(), receiver, own_mounts)),
        hooks_wait: hooks::any_before_start(&bundle.spec),
        process,
    })
}

/// The terminal that a process asks for.
pub fn terminal_of(process: &spec::Process, receiver: Receiver, console: bool) -> Terminal {
    // Where we copy from a terminal ours has its size, from the first moment: the program may ask for it at once.
    let own = || receiver.ours.then(|| rustix::termios::tcgetwinsize(rustix::stdio::stdin()).ok()).flatten();
    let asked = process.console_size.map(|size| (size.height, size.width));
    let size = own().map(|size| (size.ws_row, size.ws_col)).or(asked);
    Terminal {
        receiver,
        size,
        console,
        console_target: Target::new("/dev/console").expect("a constant without zero bytes"),
    }
}

fn root_folder(bundle: &Bundle) -> Result<OwnedFd, Failed> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::openat(rustix::fs::CWD, &bundle.rootfs, flags, rustix::fs::Mode::empty())
        .doing(|| format!("opening the root file system {}", bundle.rootfs.display()))
}

fn cgroup_view(cgroup: Option<&Cgroup>, namespace: bool) -> CgroupView<'_> {
    let mut view = CgroupView { unified: true, namespace, hierarchies: Vec::new(), folder: None };
    match cgroup.map(Cgroup::path) {
        Some(CgroupPath::V2 { path, .. }) => view.folder = Some(path),
        Some(CgroupPath::V1 { .. }) => {
            view.unified = false;
            let folders = cgroup.into_iter().flat_map(Cgroup::directories);
            view.hierarchies = folders.map(|h| (h.controllers.join(","), h.path.as_path())).collect();
        }
        None => {}
    }
    view
}

/// Limits of a child in a new user namespace, which may not raise them itself. It waits for its mappings meanwhile.
fn limit_from_outside(init: &Init, process: &spec::Process) -> Result<(), Failed> {
    for limit in &process.rlimits {
        let Some(kind) = plan::rlimit(&limit.kind) else { continue }; // checked with the bundle
        prlimit(Some(init.pid), kind, plan::bounds(limit)).doing(|| limit_sentence(limit))?;
    }
    Ok(())
}

/// The score for the out-of-memory killer, set from outside: lowering it takes this process's privileges.
pub fn score(init: &Init, process: &spec::Process) -> Result<(), Failed> {
    if let Some(score) = process.oom_score_adj {
        let path = format!("/proc/{}/oom_score_adj", init.pid.as_raw_nonzero());
        match std::fs::write(&path, score.to_string()) {
            // Lowering it takes a privilege that a user namespace does not give.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied && rootless::inside() => {}
            written => written.doing(|| format!("setting process.oomScoreAdj to {score}"))?,
        }
    }
    Ok(())
}

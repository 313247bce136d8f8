//! What went wrong in the child, as a sentence: the child sends a step, an index and an errno; the names are in the plan.

use rustix::io::Errno;

use crate::bundle::Bundle;
use crate::child::{Step, Stuck};
use crate::error::words;
use crate::mount::root::Target;
use crate::plan::{self, Mount, Plan, What};
use crate::spec;

/// What went wrong in the child, told with the names that only the plan has.
pub fn sentence(stuck: Stuck, plan: &Plan, bundle: &Bundle, program: &str) -> String {
    let Stuck { step, index, errno } = stuck;
    let index = usize::from(index);
    let path =
        |target: Option<&Target>| target.map_or("?".into(), |target| format!("/{}", target.path().to_string_lossy()));
    let files = plan.filesystem.as_ref();
    let what = match step {
        Step::MountPoint => {
            let mount = files.and_then(|files| files.mounts.get(index));
            let place = path(mount.map(|mount| &mount.target));
            let link = mount.is_some_and(|mount| mount.ordinary) && matches!(errno, Errno::LOOP | Errno::NOTDIR);
            if link {
                format!("error mounting {} at {place}: must be mounted on ordinary directory", file_system(mount))
            } else {
                format!("making the mount point {place}")
            }
        }
        Step::Mount => {
            let mount = files.and_then(|files| files.mounts.get(index));
            let place = path(mount.map(|mount| &mount.target));
            let source = bundle.spec.mounts.iter().rev().find(|m| crate::bundle::cleaned(&m.destination) == place);
            match mount.map(|mount| &mount.what) {
                Some(What::FileSystem(_) | What::Tmpfs(_)) => {
                    format!("error mounting {} at {place}", file_system(mount))
                }
                Some(What::Tree(_) | What::Inside(_)) => {
                    format!("error mounting {} at {place}", source.map_or("a source", |mount| &mount.source))
                }
                Some(What::Remount(..)) => format!("error mounting (changing the mount) at {place}"),
                _ => format!("making the link {place}"),
            }
        }
        Step::CopyUp => {
            let mount = files.and_then(|files| files.mounts.get(index));
            format!("copying what was at {} into its tmpfs (tmpcopyup)", path(mount.map(|mount| &mount.target)))
        }
        Step::Device => {
            format!("making the device {}", path(files.and_then(|f| f.nodes.get(index)).map(|n| &n.target)))
        }
        Step::Link => {
            format!("making the link {}", path(files.and_then(|f| f.links.get(index)).map(|(target, _)| target)))
        }
        Step::Masked => format!("masking {}", path(files.and_then(|f| f.masked.get(index)))),
        Step::ReadOnly => format!("making {} read-only", path(files.and_then(|f| f.read_only.get(index)))),
        Step::Sysctl => {
            let name = bundle.linux().sysctl.keys().nth(index).map_or("?", |name| name);
            format!("setting linux.sysctl.{name}")
        }
        Step::Root => format!("mounting the root file system {}", bundle.rootfs.display()),
        Step::Scheduler if errno == Errno::PERM && has_processors(bundle) => {
            "setting process.scheduler: process scheduler can't be used together with AllowedCPUs".into()
        }
        Step::Limits => bundle.process().rlimits.get(index).map_or("setting process.rlimits".into(), limit_sentence),
        Step::Hostname => format!("setting the hostname to {:?}", bundle.spec.hostname),
        Step::Domainname => format!("setting the domain name to {:?}", bundle.spec.domainname),
        Step::Namespace => {
            let kind = plan.namespaces.joined.get(index).map_or(0, |(_, kind)| *kind);
            let name = plan::namespace_kinds().find(|name| plan::namespace_flag(name) == Some(kind)).unwrap_or("?");
            format!("joining the {name} namespace")
        }
        _ => return last_steps_of(stuck, program, &plan.process.cwd.to_string_lossy()),
    };
    format!("{what}: {}", words(errno))
}

fn has_processors(bundle: &Bundle) -> bool {
    let cpu = bundle.linux().resources.as_ref().and_then(|resources| resources.cpu.as_ref());
    cpu.is_some_and(|cpu| !cpu.cpus.is_empty())
}

/// The type of what is mounted, as the specification has it.
fn file_system(mount: Option<&Mount>) -> String {
    match mount.map(|mount| &mount.what) {
        Some(What::FileSystem(files)) => files.kind.to_string_lossy().into_owned(),
        Some(What::Tmpfs(_)) => "tmpfs".into(),
        _ => "?".into(),
    }
}

/// The same for a process that joins, whose plan has no mounts.
pub fn last_steps(stuck: Stuck, program: &str) -> String {
    last_steps_of(stuck, program, "process.cwd")
}

/// Steps that every process walks.
pub fn last_steps_of(Stuck { step, index, errno }: Stuck, program: &str, cwd: &str) -> String {
    let what = match step {
        Step::Program => return no_program(program, errno),
        Step::Exec => format!("exec {program}"),
        Step::Cwd => format!("changing to the working folder {cwd}"),
        Step::CwdOutside => {
            return format!(
                "process.cwd: {cwd} is outside of container mount namespace root -- possible container breakout detected"
            );
        }
        Step::Signals => "resetting signals".into(),
        Step::Limits => "setting process.rlimits".into(),
        Step::Session => "starting a session".into(),
        Step::Network => "joining the network namespace".into(),
        Step::Cgroup => "joining the cgroup".into(),
        Step::Mappings => "waiting for the user namespace's mappings".into(),
        Step::CgroupNamespace => "making a cgroup namespace".into(),
        Step::Loopback => "bringing up the loopback interface".into(),
        Step::HostPropagation => "cutting the ties to the host's mounts".into(),
        Step::Terminal => "opening a terminal".into(),
        Step::Console => "mounting the terminal at /dev/console".into(),
        Step::Hooks => "waiting for hooks".into(),
        Step::Null => "opening the null device".into(),
        Step::PivotRoot => "changing the root".into(),
        Step::RootPropagation => "setting linux.rootfsPropagation".into(),
        Step::ReadonlyRoot => "making the root read-only".into(),
        Step::Procfs => "mounting proc for linux.sysctl".into(),
        Step::Keyring => "joining a new session keyring".into(),
        Step::Personality => "setting linux.personality".into(),
        Step::Affinity => "setting process.execCPUAffinity".into(),
        Step::Scheduler => "setting process.scheduler".into(),
        Step::IoPriority => "setting process.ioPriority".into(),
        Step::MemoryPolicy => "setting linux.memoryPolicy".into(),
        Step::Label => "setting process.apparmorProfile or process.selinuxLabel".into(),
        Step::Clone => "starting the container's first process".into(),
        Step::Seccomp => "loading the seccomp filter".into(),
        Step::SeccompListener => "handing over the seccomp listener".into(),
        Step::Bounding | Step::Ambient => {
            let name = crate::capability::NAMES.get(usize::from(index)).unwrap_or(&"a capability");
            format!("setting process.capabilities: {name}")
        }
        Step::Capabilities => "setting process.capabilities".into(),
        Step::Groups => "setting process.user.additionalGids".into(),
        Step::User => "setting process.user".into(),
        Step::NoNewPrivileges => "setting process.noNewPrivileges".into(),
        Step::Gate => "waiting to be started".into(),
        Step::Descriptors => "closing file descriptors".into(),
        Step::Mount
        | Step::MountPoint
        | Step::CopyUp
        | Step::Device
        | Step::Link
        | Step::Masked
        | Step::ReadOnly
        | Step::Sysctl
        | Step::Root
        | Step::Hostname
        | Step::Domainname
        | Step::Namespace => format!("{step:?}"),
    };
    format!("{what}: {}", words(errno))
}

/// The words by which docker, podman and the kubelet choose an exit code.
fn no_program(program: &str, errno: Errno) -> String {
    match (errno, program.contains('/')) {
        (Errno::NOENT, false) => format!("exec: {program:?}: executable file not found in $PATH"),
        (Errno::NOENT, true) => format!("exec: {program:?}: stat {program}: no such file or directory"),
        (Errno::ISDIR, _) => format!("exec: {program:?}: is a directory"),
        _ => format!("exec: {program:?}: {}", words(errno)),
    }
}

pub fn limit_sentence(limit: &spec::Rlimit) -> String {
    format!("setting {} to {} (hard {})", limit.kind, limit.soft, limit.hard)
}

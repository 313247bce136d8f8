//! The flags of `create` and `run`, in docker's words.

use crate::ctl::size;

#[derive(clap::Args, Debug, Default)]
#[group(skip)]
#[command(next_help_heading = "Container")]
pub struct Flags {
    /// The container's name
    #[arg(long)]
    pub name: Option<String>,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Remove the container when it has ended
    #[arg(long, conflicts_with = "restart")]
    pub rm: bool,
    /// Start it again when it ends: no, always, unless-stopped, on-failure[:TIMES]
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,
    /// When to pull the image
    #[arg(long, value_enum, default_value = "missing")]
    pub pull: Pull,
    /// Show no progress while pulling
    #[arg(short, long)]
    pub quiet: bool,
    /// The image's platform: OS/ARCHITECTURE[/VARIANT]
    #[arg(long)]
    pub platform: Option<String>,
    /// Write the container's name into a file
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<std::path::PathBuf>,
    /// A label of the container
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub label: Vec<String>,
    /// Labels, one a line of a file
    #[arg(long, value_name = "FILE")]
    pub label_file: Vec<String>,
    /// An annotation of the specification
    #[arg(long, value_name = "NAME=VALUE")]
    pub annotation: Vec<String>,
    /// The shim: a name such as io.containerd.runc.v2, or its path
    #[arg(long, value_name = "NAME")]
    pub runtime: Option<String>,
    /// The signal that `stop` sends
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds after which `stop` kills; -1 for never
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub stop_timeout: Option<i64>,

    /// Set a variable: NAME=VALUE, or NAME alone to pass ours on
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "Program")]
    pub env: Vec<String>,
    /// Variables, one a line of a file
    #[arg(long, value_name = "FILE", help_heading = "Program")]
    pub env_file: Vec<String>,
    /// The working folder
    #[arg(short, long, value_name = "FOLDER", help_heading = "Program")]
    pub workdir: Option<String>,
    /// USER[:GROUP], by name or number
    #[arg(short, long, help_heading = "Program")]
    pub user: Option<String>,
    /// One more group, by name or number
    #[arg(long, value_name = "GROUP", help_heading = "Program")]
    pub group_add: Vec<String>,
    /// Run this instead of the image's entry point
    #[arg(long, value_name = "PROGRAM", help_heading = "Program")]
    pub entrypoint: Option<String>,
    /// The container's host name
    #[arg(short = 'h', long, value_name = "NAME", help_heading = "Program")]
    pub hostname: Option<String>,
    /// The container's NIS domain name
    #[arg(long, value_name = "NAME", help_heading = "Program")]
    pub domainname: Option<String>,

    /// Mount a folder of the host: SOURCE:TARGET[:ro,rshared,…]
    #[arg(short, long, value_name = "SOURCE:TARGET[:OPTIONS]", help_heading = "Files")]
    pub volume: Vec<String>,
    /// Mount: type=bind|tmpfs,source=…,target=…,readonly,…
    #[arg(long, value_name = "KEY=VALUE,…", help_heading = "Files")]
    pub mount: Vec<String>,
    /// Mount a file system in memory
    #[arg(long, value_name = "TARGET[:OPTIONS]", help_heading = "Files")]
    pub tmpfs: Vec<String>,
    /// Make the root file system read-only
    #[arg(long, help_heading = "Files")]
    pub read_only: bool,
    /// The size of /dev/shm
    #[arg(long, value_name = "SIZE", value_parser = size::parse, help_heading = "Files")]
    pub shm_size: Option<i64>,
    /// A device of the host, or a folder of them
    #[arg(long, value_name = "HOST[:CONTAINER][:rwm]", help_heading = "Files")]
    pub device: Vec<String>,
    /// A rule for devices: TYPE MAJOR:MINOR ACCESS
    #[arg(long, value_name = "RULE", help_heading = "Files")]
    pub device_cgroup_rule: Vec<String>,

    /// The most memory, such as 64m or 1g
    #[arg(short, long, value_name = "SIZE", value_parser = size::parse, help_heading = "Limits")]
    pub memory: Option<i64>,
    /// What memory is pressed down to when it is scarce
    #[arg(long, value_name = "SIZE", value_parser = size::parse, help_heading = "Limits")]
    pub memory_reservation: Option<i64>,
    /// The most memory and swap together; -1 for no limit
    #[arg(long, value_name = "SIZE", value_parser = size::parse_or_unlimited, allow_hyphen_values = true, help_heading = "Limits")]
    pub memory_swap: Option<i64>,
    /// How readily memory is swapped out, 0 to 100
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(0..=100), help_heading = "Limits")]
    pub memory_swappiness: Option<u64>,
    /// Never kill for lack of memory
    #[arg(long, help_heading = "Limits")]
    pub oom_kill_disable: bool,
    /// How readily it is killed for lack of memory, -1000 to 1000
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(-1000..=1000), allow_negative_numbers = true, help_heading = "Limits")]
    pub oom_score_adj: Option<i64>,
    /// The most processors, such as 1.5
    #[arg(long, value_name = "NUMBER", value_parser = cpus, help_heading = "Limits")]
    pub cpus: Option<Cpus>,
    /// The share of processor time, against 1024 of others
    #[arg(short, long, value_name = "NUMBER", help_heading = "Limits")]
    pub cpu_shares: Option<u64>,
    /// Microseconds of processor time in each period
    #[arg(
        long,
        value_name = "MICROSECONDS",
        allow_negative_numbers = true,
        conflicts_with = "cpus",
        help_heading = "Limits"
    )]
    pub cpu_quota: Option<i64>,
    /// The period of --cpu-quota
    #[arg(long, value_name = "MICROSECONDS", conflicts_with = "cpus", help_heading = "Limits")]
    pub cpu_period: Option<u64>,
    /// The processors to run on, such as 0-2,4
    #[arg(long, value_name = "LIST", help_heading = "Limits")]
    pub cpuset_cpus: Option<String>,
    /// The memory nodes to use, such as 0,1
    #[arg(long, value_name = "LIST", help_heading = "Limits")]
    pub cpuset_mems: Option<String>,
    /// The most processes; -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, help_heading = "Limits")]
    pub pids_limit: Option<i64>,
    /// The weight of block I/O, 10 to 1000
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(10..=1000), help_heading = "Limits")]
    pub blkio_weight: Option<u16>,
    /// A limit of each process, such as nofile=1024:4096
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = "Limits")]
    pub ulimit: Vec<String>,
    /// The cgroup to put the container's below
    #[arg(long, value_name = "CGROUP", help_heading = "Limits")]
    pub cgroup_parent: Option<String>,

    /// Add a capability, or ALL
    #[arg(long, value_name = "CAPABILITY", value_delimiter = ',', help_heading = "Rights")]
    pub cap_add: Vec<String>,
    /// Take a capability away, or ALL
    #[arg(long, value_name = "CAPABILITY", value_delimiter = ',', help_heading = "Rights")]
    pub cap_drop: Vec<String>,
    /// All capabilities and devices, no seccomp filter, nothing masked
    #[arg(long, help_heading = "Rights")]
    pub privileged: bool,
    /// seccomp=FILE|unconfined, apparmor=PROFILE, no-new-privileges, systempaths=unconfined
    #[arg(long, value_name = "OPTION", help_heading = "Rights")]
    pub security_opt: Vec<String>,
    /// A kernel parameter of the container's namespaces
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Rights")]
    pub sysctl: Vec<String>,

    /// Processes: host, or container:NAME for another container's
    #[arg(long, value_name = "NAMESPACE", help_heading = "Namespaces")]
    pub pid: Option<String>,
    /// Semaphores and shared memory: private, none, host
    #[arg(long, value_name = "NAMESPACE", help_heading = "Namespaces")]
    pub ipc: Option<String>,
    /// Host name: host
    #[arg(long, value_name = "NAMESPACE", help_heading = "Namespaces")]
    pub uts: Option<String>,
    /// Users: host
    #[arg(long, value_name = "NAMESPACE", help_heading = "Namespaces")]
    pub userns: Option<String>,
    /// Cgroups: private, host
    #[arg(long, value_name = "NAMESPACE", help_heading = "Namespaces")]
    pub cgroupns: Option<String>,

    /// A network's name, `host`, `none`, or container:NAME for another container's; `bridge` if CNI plugins are installed
    #[arg(long, visible_alias = "net", value_name = "NETWORK", help_heading = "Network")]
    pub network: Option<String>,
    /// Publish a port
    #[arg(short, long, value_name = "[ADDRESS:]PORT:PORT[/PROTOCOL]", help_heading = "Network")]
    pub publish: Vec<String>,
    /// One more name for its neighbours on the network
    #[arg(long, visible_alias = "net-alias", value_name = "NAME", help_heading = "Network")]
    pub network_alias: Vec<String>,
    /// The address on the network
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    pub ip: Option<std::net::IpAddr>,
    /// The hardware address
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    pub mac_address: Option<String>,
    /// A line of its hosts file
    #[arg(long, value_name = "NAME:ADDRESS", help_heading = "Network")]
    pub add_host: Vec<String>,
    /// A name server
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    pub dns: Vec<String>,
    /// A domain that names are looked up in
    #[arg(long, value_name = "DOMAIN", help_heading = "Network")]
    pub dns_search: Vec<String>,
    /// An option of the resolver
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION", help_heading = "Network")]
    pub dns_option: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Pull {
    Always,
    #[default]
    Missing,
    Never,
}

/// Thousandths of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus(pub i64);

/// docker's bounds: a hundredth of a processor to all of them; 0 asks for nothing.
fn cpus(text: &str) -> Result<Cpus, String> {
    let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    #[allow(clippy::cast_precision_loss)] // no machine has so many
    if number != 0.0 && !(0.01..=all as f64).contains(&number) {
        return Err(format!("the range is from 0.01 to {all}.00, as there are only {all} processors"));
    }
    #[allow(clippy::cast_possible_truncation)] // it is in that range
    Ok(Cpus((number * 1000.0).round() as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_processors_is_a_number_within_the_machine_s() {
        assert_eq!((cpus("0.5"), cpus("1"), cpus("0")), (Ok(Cpus(500)), Ok(Cpus(1000)), Ok(Cpus(0))));
        for bad in ["nan", "inf", "-1", "0.001", "100000", "x", ""] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }
}

use super::*;

struct Stage {
    pod: rows::Pod,
    config: pb::ContainerConfig,
    host: Host,
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Stage {
        let pod =
            rows::Pod { id: "pod".into(), pid: 7, config: Some(pb::PodSandboxConfig::default()), ..Default::default() };
        let config = pb::ContainerConfig { command: vec!["run".into()], ..Default::default() };
        let host = Host { lowest_oom_score: -500, unified: false, selinux: false, ..Host::look() };
        Stage { pod, config, host, dir: tempfile::tempdir().unwrap() }
    }

    fn security(&mut self) -> &mut pb::LinuxContainerSecurityContext {
        self.config.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    fn spec_of(&self, image: &ImageConfig) -> Result<Value> {
        let at = |name: &str| self.dir.path().join(name);
        let files =
            Files { hostname: at("hostname"), hosts: at("hosts"), resolv_conf: at("resolv.conf"), shm: at("shm") };
        std::fs::write(&files.hosts, "").unwrap();
        let user = User::default();
        spec(&Given {
            id: "one",
            pod: &self.pod,
            config: &self.config,
            image,
            user: &user,
            files: &files,
            more: &[],
            pid: self.pod.pid,
            cdi: &[],
            host: &self.host,
        })
    }

    fn spec(&self) -> Result<Value> {
        self.spec_of(&ImageConfig::default())
    }
}

fn namespace<'v>(spec: &'v Value, kind: &str) -> Option<&'v Value> {
    spec["linux"]["namespaces"].as_array().unwrap().iter().find(|one| one["type"] == kind)
}

#[test]
fn a_container_joins_its_pod_and_has_what_it_asks_for_alone() {
    let mut stage = Stage::new();
    let spec = stage.spec().unwrap();
    for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")] {
        assert_eq!(namespace(&spec, kind).unwrap()["path"], format!("/proc/7/ns/{file}"), "{kind}");
    }
    assert_eq!(namespace(&spec, "user"), None);
    let options = stage.security().namespace_options.get_or_insert_default();
    options.set_pid(pb::NamespaceMode::Container);
    assert_eq!(namespace(&stage.spec().unwrap(), "pid").unwrap(), &json!({"type": "pid"}));
}

#[test]
fn a_command_and_arguments_replace_the_images_as_in_kubernetes() {
    let image = ImageConfig { entrypoint: Some(vec!["/e".into()]), cmd: Some(vec!["c".into()]), ..Default::default() };
    let mut stage = Stage::new();
    let mut run = |command: &[&str], args: &[&str]| {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        (stage.config.command, stage.config.args) = (words(command), words(args));
        stage.spec_of(&image).unwrap()["process"]["args"].clone()
    };
    assert_eq!(run(&[], &[]), json!(["/e", "c"]));
    assert_eq!(run(&[], &["a"]), json!(["/e", "a"]));
    assert_eq!(run(&["x"], &[]), json!(["x"]));
    assert_eq!(run(&["x"], &["a"]), json!(["x", "a"]));
    stage.config = pb::ContainerConfig::default();
    assert!(stage.spec().unwrap_err().to_string().contains("no command specified"));
}

#[test]
fn capabilities_are_added_after_all_were_and_dropped_last() {
    let mut stage = Stage::new();
    let mut run = |add: &[&str], drop: &[&str], ambient: &[&str]| {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        stage.security().capabilities = Some(pb::Capability {
            add_capabilities: words(add),
            drop_capabilities: words(drop),
            add_ambient_capabilities: words(ambient),
        });
        stage.spec().map(|spec| spec["process"]["capabilities"].clone())
    };
    let usual = run(&[], &[], &[]).unwrap();
    assert_eq!((usual["bounding"].as_array().unwrap().len(), &usual["ambient"]), (14, &json!([])));
    assert_eq!(run(&["net_admin"], &["ALL"], &[]).unwrap()["effective"], json!(["CAP_NET_ADMIN"]));
    let all_but_one = run(&["ALL"], &["CHOWN"], &[]).unwrap()["bounding"].clone();
    assert!(!all_but_one.as_array().unwrap().contains(&json!("CAP_CHOWN")));
    let ambient = run(&[], &["ALL"], &["NET_RAW"]).unwrap();
    for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        assert_eq!(ambient[set], json!(["CAP_NET_RAW"]), "{set}");
    }
    assert!(run(&["NONSENSE"], &[], &[]).unwrap_err().to_string().contains("unknown capability \"NONSENSE\""));
}

#[test]
fn privileges_are_for_pods_that_have_them() {
    let mut stage = Stage::new();
    stage.security().privileged = true;
    assert!(stage.spec().unwrap_err().to_string().contains("no privileged container allowed in sandbox"));
    let linux = stage.pod.config.get_or_insert_default().linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    stage.security().seccomp_profile_path = "localhost//nonexistent".into(); // not looked at
    let spec = stage.spec().unwrap();
    assert_eq!(spec["linux"].get("seccomp"), None);
    assert_eq!(spec["linux"]["resources"]["devices"], json!([{"allow": true, "access": "rwm"}]));
    let sys = spec["mounts"].as_array().unwrap().iter().find(|mount| mount["destination"] == "/sys").unwrap();
    assert!(sys["options"].as_array().unwrap().contains(&json!("rw")));
}

#[test]
fn a_profile_is_the_default_a_file_or_none_and_nothing_else() {
    let mut stage = Stage::new();
    let file = stage.dir.path().join("p.json");
    std::fs::write(&file, r#"{"defaultAction":"SCMP_ACT_LOG"}"#).unwrap();
    let mut run = |old: &str| {
        stage.security().seccomp_profile_path = old.into();
        stage.spec().map(|spec| spec["linux"]["seccomp"]["defaultAction"].clone()).map_err(|error| error.to_string())
    };
    assert_eq!(run("").unwrap(), Value::Null);
    assert_eq!(run("unconfined").unwrap(), Value::Null);
    assert_eq!(run("docker/default").unwrap(), "SCMP_ACT_ERRNO");
    assert_eq!(run(&format!("localhost/{}", file.display())).unwrap(), "SCMP_ACT_LOG");
    assert!(run(&file.display().to_string()).unwrap_err().contains("invalid profile"));
    assert!(run("localhost//nonexistent").unwrap_err().contains("no such file or directory"));
}

#[test]
fn scores_are_not_lower_than_we_may_set_them_and_limits_are_passed_on() {
    let mut stage = Stage::new();
    let resources = stage.config.linux.get_or_insert_default().resources.get_or_insert_default();
    (resources.oom_score_adj, resources.memory_limit_in_bytes, resources.cpu_quota) = (-997, 1 << 20, -1);
    stage.host.counts_swap = true;
    let spec = stage.spec().unwrap();
    assert_eq!(spec["process"]["oomScoreAdj"], -500);
    assert_eq!(spec["linux"]["resources"]["memory"], json!({"limit": 1 << 20, "swap": 1 << 20}));
    assert_eq!(spec["linux"]["resources"]["cpu"], json!({"quota": -1}));
}

#[test]
fn each_place_is_mounted_once_and_what_cri_mounts_wins() {
    let mut stage = Stage::new();
    let source = stage.dir.path().display().to_string();
    let mount =
        |target: &str| pb::Mount { container_path: target.into(), host_path: source.clone(), ..Default::default() };
    stage.config.mounts = vec![mount("/a/b"), mount("/etc/hosts/"), mount("/a"), mount("/dev/mqueue")];
    let spec = stage.spec().unwrap();
    let targets: Vec<&str> =
        spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
    let mut once = targets.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), targets.len(), "{targets:?}");
    let place = |target: &str| targets.iter().position(|one| *one == target).unwrap();
    assert!(place("/a") < place("/a/b") && place("/dev") < place("/dev/mqueue") && place("/dev") < place("/dev/shm"));
    assert_eq!(spec["mounts"][place("/etc/hosts")]["source"], source);
    assert!(!targets.contains(&"/etc/hostname"), "it was not made");
}

#[test]
fn its_cgroup_lies_where_the_kubelet_says() {
    for (parent, path) in [
        ("/kubepods/pod1", "/kubepods/pod1/one"),
        ("/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:cri-containerd:one"),
        ("", "/k8s.io-one"),
    ] {
        assert_eq!(cgroups_path(parent, "one"), path);
    }
}

//! Limits, from cluster.toml to the files of a cgroup. The folder that stands for the cgroup is a plain one with the
//! files that the kernel would have made: this machine's cgroup v2 need not have the controllers. That the kernel
//! then holds a process to them is not shown here.

use std::fs;
use std::path::{Path, PathBuf};

use bigbrother::agent::resolve::cgroup_limits;
use bigbrother::config::{self, Context};
use bigbrother::keeper::cgroup::{Cgroup, Cgroups};
use bigbrother::keeper::protocol::CgroupSupport;
use tempfile::TempDir;

const FILES: [(&str, &str); 5] = [
    ("cgroup.events", "populated 0\nfrozen 0\n"),
    ("cgroup.procs", ""),
    ("memory.max", "max\n"),
    ("cpu.max", "max 100000\n"),
    ("pids.max", "max\n"),
];

/// A games cgroup with these controllers, and the cgroup of zone.0 in it.
struct Tree {
    root: TempDir,
}

impl Tree {
    fn make(controllers: &str) -> Tree {
        let root = TempDir::new().expect("a folder");
        let put = |path: PathBuf, text: &str| fs::write(path, text).expect("a file");
        for (name, text) in
            [("cgroup.procs", ""), ("cgroup.subtree_control", ""), ("cgroup.controllers", controllers)]
        {
            put(root.path().join(name), text);
        }
        let tree = Tree { root };
        fs::create_dir(tree.zone()).expect("a folder");
        for (name, text) in FILES {
            put(tree.zone().join(name), text);
        }
        tree
    }

    fn zone(&self) -> PathBuf {
        self.root.path().join("instance-zone.0")
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.zone().join(file)).expect("a file of the cgroup")
    }

    fn cgroups(&self) -> Cgroups {
        Cgroups::at(self.root.path()).expect("a games cgroup")
    }

    fn open(&self) -> Cgroup {
        let zone = "zone.0".parse().expect("an instance");
        self.cgroups().open(&zone).expect("it can be opened").expect("there are cgroups")
    }
}

/// The files of a process with these limits.
fn limits(toml: &str) -> Vec<(String, String)> {
    let text = format!(
        "[process.zone]\ncommand = [\"/a\"]\nheartbeat = {{ mode = \"none\" }}\nlimits = {{ {toml} }}\n"
    );
    let context = Context { hostname: "alpha".to_owned(), host_override: None };
    let config =
        config::parse(&text, "cluster.toml", &context).unwrap_or_else(|e| panic!("{}", e.render(false)));
    cgroup_limits(&config.spec.processes.values().next().expect("a process").limits)
}

#[test]
fn limits_are_written_changed_and_taken_back() {
    let tree = Tree::make("cpu memory pids");
    let mut zone = tree.open();
    // What is written: the files are emptied before, since a plain file keeps the rest of what it held.
    let mut written = |wanted: &[(String, String)]| {
        let files = ["memory.max", "cpu.max", "pids.max"];
        files.iter().for_each(|file| fs::write(tree.zone().join(file), "").expect("the file"));
        assert_eq!(zone.limit(wanted), []);
        files.map(|file| tree.read(file))
    };
    assert_eq!(
        written(&limits("memory = \"2GiB\", cpu = 1.5, pids = 256")),
        ["2147483648", "150000 100000", "256"]
    );
    assert_eq!(written(&limits("memory = \"1GiB\", pids = 256")), ["1073741824", "max", ""]);
    assert_eq!(written(&limits("memory = \"1GiB\", pids = 256")), ["", "", ""]);
    assert_eq!(written(&limits("cpu = 0.25")), ["max", "25000 100000", "max"]);
    assert_eq!(written(&[]), ["", "max", ""]);
}

#[test]
fn what_a_keeper_before_has_set_is_taken_back() {
    let tree = Tree::make("cpu memory pids");
    assert_eq!(tree.open().limit(&limits("memory = \"2GiB\", cpu = 1.5, pids = 256")), []);
    // Another keeper: it knows of no limit.
    let mut zone = tree.open();
    assert_eq!(zone.limit(&limits("pids = 64")), []);
    // A plain file keeps the rest of what it held.
    assert!(tree.read("memory.max").starts_with("max"), "{}", tree.read("memory.max"));
    assert!(tree.read("cpu.max").starts_with("max"), "{}", tree.read("cpu.max"));
    assert!(tree.read("pids.max").starts_with("64"), "{}", tree.read("pids.max"));
}

#[test]
fn a_limit_without_its_controller_is_told_and_tried_again() {
    let tree = Tree::make("memory pids");
    fs::remove_file(tree.zone().join("cpu.max")).expect("the file");
    let mut zone = tree.open();
    let wanted = limits("memory = \"1GiB\", cpu = 0.5");
    for _ in 0..2 {
        assert_eq!(zone.limit(&wanted), [("cpu.max".to_owned(), libc::ENOENT)]);
        assert_eq!(tree.read("memory.max"), "1073741824");
        assert!(!tree.zone().join("cpu.max").exists(), "nothing is made");
    }
    fs::write(tree.zone().join("cpu.max"), "max 100000\n").expect("the file");
    assert_eq!(zone.limit(&wanted), []);
    assert!(tree.read("cpu.max").starts_with("50000 100000"));
}

#[test]
fn a_games_cgroup_that_was_removed_and_made_again_is_found_again() {
    let tree = Tree::make("memory");
    let cgroups = tree.cgroups();
    fs::remove_dir_all(tree.root.path()).expect("removed");
    fs::create_dir_all(tree.zone()).expect("a folder");
    for (name, text) in FILES {
        fs::write(tree.zone().join(name), text).expect("a file");
    }
    for (name, text) in [("cgroup.controllers", "memory"), ("cgroup.subtree_control", "")] {
        fs::write(tree.root.path().join(name), text).expect("a file");
    }
    let mut zone =
        cgroups.open(&"zone.0".parse().expect("an instance")).expect("it is there").expect("cgroups");
    assert_eq!(zone.limit(&limits("memory = \"1GiB\"")), []);
    assert_eq!(tree.read("memory.max"), "1073741824");
    let enabled = fs::read_to_string(tree.root.path().join("cgroup.subtree_control")).expect("a file");
    assert_eq!(enabled, "+memory");
}

#[test]
fn a_limit_never_leaves_its_cgroup() {
    let tree = Tree::make("memory");
    let outside = tree.root.path().join("cgroup.procs");
    for file in ["../cgroup.procs", outside.to_str().expect("UTF-8"), "..", "sub/memory.max"] {
        assert_eq!(
            tree.open().limit(&[(file.to_owned(), "1".to_owned())]),
            [(file.to_owned(), libc::EINVAL)]
        );
    }
    assert_eq!(fs::read_to_string(outside).expect("the file"), "");
}

#[test]
fn the_controllers_that_there_are_get_enabled() {
    let enabled = |controllers: &str| {
        let tree = Tree::make(controllers);
        let support = tree.cgroups().support().clone();
        let last =
            fs::read_to_string(Path::new(tree.root.path()).join("cgroup.subtree_control")).expect("the file");
        (support, last)
    };
    let full =
        |names: &[&str]| CgroupSupport::Full { controllers: names.iter().map(|n| (*n).to_owned()).collect() };
    // A plain file keeps only the last of the three writes.
    assert_eq!(
        enabled("cpuset cpu io memory hugetlb pids"),
        (full(&["memory", "cpu", "pids"]), "+pids".to_owned())
    );
    assert_eq!(enabled("hugetlb memory"), (full(&["memory"]), "+memory".to_owned()));
    assert_eq!(enabled("hugetlb"), (CgroupSupport::KillOnly, String::new()));
}

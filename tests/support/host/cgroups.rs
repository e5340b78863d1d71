//! The games' cgroups of a host under test.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder of a keeper's games: it holds the cgroups of the instances that it has started.
pub fn games_cgroup(keeper: i32, runtime_dir: &Path) -> Option<PathBuf> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let own = read(&format!("/proc/{keeper}/cgroup"));
    let root = bigbrother::keeper::cgroup::find_own(&read("/proc/self/mountinfo"), &own)?;
    let hash = bigbrother::keeper::cgroup::hash_of(&fs::canonicalize(runtime_dir).ok()?);
    Some(root.join(format!("bigbrother-{hash}")))
}

/// A folder and those below it, parents first.
pub fn folders(root: &Path) -> Vec<PathBuf> {
    let mut all = vec![root.to_owned()];
    let mut at = 0;
    while at < all.len() {
        let below = fs::read_dir(&all[at]).into_iter().flatten().flatten();
        let below: Vec<PathBuf> = below.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        all.extend(below);
        at += 1;
    }
    all
}

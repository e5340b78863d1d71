//! Where the games cgroup of a keeper lies. Pure.

use std::path::{Path, PathBuf};

/// The path of the caller's own v2 cgroup: from the texts of /proc/self/mountinfo and /proc/self/cgroup.
pub fn find_own(mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    find(mountinfo, Path::new(own))
}

/// The path of a v2 cgroup, counted from the root of its hierarchy: where that is mounted, if anywhere.
pub fn find(mountinfo: &str, cgroup: &Path) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        // proc_pid_mountinfo(5): id parent dev root mountpoint options [tags] - type source options
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next()? != "cgroup2" {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        let below = cgroup.strip_prefix(&root).ok()?;
        Some(if below.as_os_str().is_empty() { point.into() } else { Path::new(&point).join(below) })
    })
}

/// mountinfo writes a space as `\040`.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Eight hexadecimal digits that tell runtime folders apart (FNV-1a; names, not secrets).
pub fn hash_of(runtime_dir: &Path) -> String {
    let hash = runtime_dir
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{:08x}", (hash >> 32) as u32 ^ hash as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_and_unified_mounts_are_found() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let own = "4:memory:/x\n0::/\n";
        assert_eq!(find_own(hybrid, own), Some("/sys/fs/cgroup/unified".into()));
        let unified = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";
        let own = "0::/system.slice/keeper.service\n";
        assert_eq!(find_own(unified, own), Some("/sys/fs/cgroup/system.slice/keeper.service".into()));
    }

    #[test]
    fn a_mount_of_a_part_and_a_host_without_are_told_apart() {
        let part = "30 23 0:26 /box /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find_own(part, "0::/box/a\n"), Some("/sys/fs/cgroup/a".into()));
        assert_eq!(find_own(part, "0::/other\n"), None);
        assert_eq!(find_own("", "0::/\n"), None);
        assert_eq!(find_own(part, "4:memory:/x\n"), None);
    }

    #[test]
    fn a_unit_is_found_wherever_the_hierarchy_is_mounted() {
        let unit = Path::new("/system.slice/games.service");
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(find(hybrid, unit), Some("/sys/fs/cgroup/unified/system.slice/games.service".into()));
        let unified = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(find(unified, unit), Some("/sys/fs/cgroup/system.slice/games.service".into()));
        let legacy = "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n";
        assert_eq!(find(legacy, unit), None);
    }

    #[test]
    fn folders_have_different_hashes() {
        assert_ne!(hash_of(Path::new("/run/a")), hash_of(Path::new("/run/b")));
        assert_eq!(hash_of(Path::new("/run/a")).len(), 8);
    }
}

//! What lies around a host under test: waiting, processes of the machine, a small disk.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bigbrother::keeper::process::stat;

/// No wait of these tests takes longer, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something is there; panics with what was seen last.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if begun.elapsed() > PATIENCE => panic!("{what}: not within {PATIENCE:?}; saw {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// `Ok` when it holds, else what was seen.
pub fn expect(holds: bool, seen: impl std::fmt::Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{seen:?}")) }
}

pub fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|s| s.alive())
}

pub fn signal(pid: i32, signal: i32) {
    assert!(pid > 1, "{pid} is nobody to send a signal to");
    // SAFETY: kill touches no memory. It fails only when the process is gone, which some tests race with.
    unsafe { libc::kill(pid, signal) };
}

/// The words of a file of /proc/PID that separates them by zeros.
pub fn words(pid: i32, file: &str) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).ok()?;
    Some(bytes.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect())
}

/// Live processes whose words please.
pub fn processes(file: &str, pleases: impl Fn(&[String]) -> bool) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| alive(*pid) && words(*pid, file).is_some_and(|words| pleases(&words))).collect()
}

/// A process that belongs to nobody here; killed when dropped.
pub struct Bystander(Child);

impl Bystander {
    pub fn start() -> Bystander {
        let mut command = Command::new("/bin/sleep");
        Bystander(command.arg("600").stdin(Stdio::null()).spawn().unwrap())
    }

    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A small file system in memory; unmounted when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn mount(at: &Path, size: &str) -> SmallDisk {
        use nix::mount::{MsFlags, mount};
        fs::create_dir_all(at).unwrap();
        let options = format!("size={size},mode=0755");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        SmallDisk(at.to_owned())
    }

    /// Takes what is free; what is returned is the file to remove.
    pub fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [64 << 10, 1 << 10] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

//! What the kernel says about a process: who it is, whether it lives, how it ended.
//!
//! Owns nothing. The identity rule is here: a process is the one of a ledger record when its start time
//! lies between the intent (before the fork) and the moment at which the child itself wrote its pid. A
//! later user of the same pid cannot have started then, because the child was using it. Called by the
//! loop, by adoption and by the walk over descendants.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::protocol::End;

/// The fields of /proc/PID/stat that matter here (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Its number.
    pub pid: i32,
    /// `R`, `S`, `Z` …
    pub state: u8,
    /// Parent.
    pub parent: i32,
    /// Process group.
    pub group: i32,
    /// Session.
    pub session: i32,
    /// It has executed a program since its fork.
    pub executed: bool,
    /// Start time, clock ticks of CLOCK_BOOTTIME.
    pub start_ticks: u64,
    /// Exit status in the form of wait(2); meaningful for a zombie.
    pub exit_status: i32,
}

impl Stat {
    /// False for zombies and the dead.
    pub fn alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// Parses the text of /proc/PID/stat. The name may hold spaces and brackets, so fields count from the last `)`.
pub fn parse_stat(text: &str) -> Option<Stat> {
    let open = text.find('(')?;
    let close = text.rfind(')')?;
    let pid = text[..open].trim().parse().ok()?;
    let mut state = 0;
    let mut numbers = [0_i64; 4];
    let mut start_ticks = None;
    let mut exit_status = 0;
    let mut executed = false;
    for (at, field) in text.get(close + 1..)?.split_ascii_whitespace().enumerate() {
        // Field 3 of the manual is the first after the name.
        match at + 3 {
            3 => state = *field.as_bytes().first()?,
            number @ 4..=6 => numbers[number - 4] = field.parse().ok()?,
            // PF_FORKNOEXEC (linux/sched.h).
            9 => executed = field.parse::<u32>().ok()? & 0x40 == 0,
            22 => start_ticks = Some(field.parse().ok()?),
            52 => exit_status = field.parse().ok()?,
            _ => {}
        }
    }
    let [parent, group, session, _] = numbers.map(|n| n as i32);
    Some(Stat { pid, state, parent, group, session, executed, start_ticks: start_ticks?, exit_status })
}

/// Reads the stat of a process; `None` when there is no such process.
pub fn stat(pid: i32) -> Option<Stat> {
    // The name may be any bytes.
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&text))
}

/// Not a zombie, and not gone. 0, a process that the kernel does not name, counts as gone.
pub fn lives(pid: i32) -> bool {
    pid > 0 && stat(pid).is_some_and(|stat| stat.alive())
}

/// Nanoseconds of one clock tick.
pub fn tick_ns() -> u64 {
    // SAFETY: sysconf touches no memory of ours.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    1_000_000_000 / u64::try_from(hertz).unwrap_or(100).max(1)
}

/// The identity rule: did a process that started in this tick start between `intent_ns` and `child_ns`?
pub fn started_within(start_ticks: u64, tick_ns: u64, intent_ns: u64, child_ns: u64) -> bool {
    let first = start_ticks.saturating_mul(tick_ns);
    let end = first.saturating_add(tick_ns);
    child_ns >= intent_ns && end > intent_ns && first <= child_ns
}

/// Nanoseconds of CLOCK_BOOTTIME.
pub fn boottime_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// How a process ended, from a status in the form of wait(2).
pub fn end_of_status(status: i32) -> End {
    if libc::WIFSIGNALED(status) {
        End::Signal { signal: libc::WTERMSIG(status), core: libc::WCOREDUMP(status) }
    } else {
        End::Code(libc::WEXITSTATUS(status))
    }
}

/// How a child has ended, which stays a zombie; `None`: it has not. SIGCHLD says it as well, but older kernels
/// say it of the thread that began the program: where that has left by itself and another one crashed, or exited, it is wrong.
pub fn end_of_child(pid: i32) -> Option<End> {
    // SAFETY: siginfo_t is plain old data, for which all zeros is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: `info` is a valid siginfo_t to write to.
    let done = unsafe { libc::waitid(libc::P_PID, pid.try_into().ok()?, &mut info, flags) };
    // SAFETY: waitid fills these fields; where no child has ended they stay zero.
    let (ended, status) = unsafe { (info.si_pid(), info.si_status()) };
    if done != 0 || ended != pid {
        return None;
    }
    match info.si_code {
        libc::CLD_EXITED => Some(End::Code(status)),
        libc::CLD_KILLED => Some(End::Signal { signal: status, core: false }),
        libc::CLD_DUMPED => Some(End::Signal { signal: status, core: true }),
        _ => None,
    }
}

/// A descriptor of a process (pidfd_open(2)), close-on-exec.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal to the process of a pidfd.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no siginfo is passed; the rest are numbers.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `struct pidfd_info` of linux/pidfd.h, first version; exit information since Linux 6.15.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_status: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
// _IOWR(0xFF, 11, 64 bytes)
const PIDFD_GET_INFO: libc::c_ulong = (3 << 30) | (64 << 16) | (0xFF << 8) | 11;

fn exit_information(pidfd: BorrowedFd<'_>) -> Option<End> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request's size field says 64 bytes, which is what `info` is.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &mut info) };
    (done == 0 && info.mask & PIDFD_INFO_EXIT != 0).then(|| end_of_status(info.exit_status))
}

/// How a process that is not our child ended, once its pidfd is readable: from the pidfd when its parent
/// has reaped it, from its stat while it is a zombie; else nobody can know.
pub fn end_of_stranger(pidfd: BorrowedFd<'_>, pid: i32) -> End {
    exit_information(pidfd)
        .or_else(|| stat(pid).filter(|s| s.state == b'Z').map(|s| end_of_status(s.exit_status)))
        // It may have been reaped between the two looks.
        .or_else(|| exit_information(pidfd))
        .unwrap_or(End::Unknown)
}

/// The exit status of this child, or of any (-1), as wait(2) gives it; `None`: none has ended.
pub fn take_status(pid: i32) -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` is a valid int to write to.
    let pid = unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG | libc::__WALL) };
    (pid > 0).then_some((pid, status))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    const TICK: u64 = 10_000_000;

    #[test]
    fn a_stat_line_with_brackets_and_spaces_in_the_name_is_read() {
        let mut line =
            "4711 (a) b (c) S 1 4700 4699 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 0".to_owned();
        line.push_str(&" 0".repeat(28));
        line.push_str(" 9");
        let stat = parse_stat(&line).unwrap();
        assert_eq!((stat.pid, stat.state, stat.parent), (4711, b'S', 1));
        assert_eq!((stat.group, stat.session, stat.start_ticks), (4700, 4699, 987_654));
        assert_eq!(stat.exit_status, 9);
        assert_eq!(parse_stat("4711 (short) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn identity_holds_within_the_window_widened_to_a_tick() {
        // Intent and child time within one tick: the process's start is rounded down to before the intent.
        assert!(started_within(100, TICK, 1_005_000_000, 1_006_000_000));
        assert!(started_within(100, TICK, 999_999_999, 1_000_000_000));
        // Started a tick before the intent: an older process.
        assert!(!started_within(99, TICK, 1_005_000_000, 1_006_000_000));
        // Started after the child wrote its pid: a later user of the pid.
        assert!(!started_within(101, TICK, 1_005_000_000, 1_006_000_000));
        // The child wrote nothing.
        assert!(!started_within(100, TICK, 1_005_000_000, 0));
    }

    #[test]
    fn our_own_start_lies_before_now() {
        let me = stat(std::process::id() as i32).unwrap();
        let now = boottime_ns();
        assert!(me.alive());
        assert!(started_within(me.start_ticks, tick_ns(), 0, now));
        assert!(!started_within(me.start_ticks, tick_ns(), now + 1_000_000_000, now + 2_000_000_000));
    }

    #[test]
    fn a_zombie_tells_how_it_ended() {
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pidfd = open(child.id() as i32).unwrap();
        let mut wait = [nix::poll::PollFd::new(pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut wait, 5_000_u16).unwrap(), 1, "the child did not end");
        assert_eq!(end_of_stranger(pidfd.as_fd(), child.id() as i32), End::Code(7));
        child.wait().unwrap();
    }

    #[test]
    fn a_look_at_a_childs_end_leaves_it_a_zombie() {
        use std::os::unix::process::ExitStatusExt;
        for (script, end) in
            [("exit 7", End::Code(7)), ("kill -TERM $$", End::Signal { signal: 15, core: false })]
        {
            let mut child = std::process::Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
            let pid = child.id() as i32;
            let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
            let seen = loop {
                match end_of_child(pid) {
                    Some(end) => break end,
                    None => assert!(std::time::Instant::now() < until, "{script}: it does not end"),
                }
            };
            assert_eq!((seen, lives(pid)), (end, false));
            let status = child.wait().unwrap().into_raw();
            assert_eq!(end_of_status(status), end);
            assert_eq!(end_of_child(pid), None, "it is nobody's child any more");
        }
        assert_eq!(end_of_child(1), None);
    }

    #[test]
    fn statuses_become_ends() {
        assert_eq!(end_of_status(3 << 8), End::Code(3));
        assert_eq!(end_of_status(9), End::Signal { signal: 9, core: false });
        assert_eq!(end_of_status(11 | 0x80), End::Signal { signal: 11, core: true });
    }
}

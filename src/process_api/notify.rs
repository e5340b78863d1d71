//! sd_notify datagrams: from bytes to a [`Notice`].
//!
//! Owns the subset of sd_notify(3) that docs/protocol.md lists. Pure and total; never looks at who sent it
//! (that is [`super::socket`]'s part) nor at what it means. Called by [`super::socket`].

/// The largest datagram that is read.
pub const MAX_DATAGRAM: usize = 4 * 1024;

/// What one datagram says; everything it does not say is `None` or false.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// `READY=1`
    pub ready: bool,
    /// `RELOADING=1`
    pub reloading: bool,
    /// `MONOTONIC_USEC=`: CLOCK_MONOTONIC of the sender, microseconds.
    pub monotonic_usec: Option<u64>,
    /// `STOPPING=1`
    pub stopping: bool,
    /// `STATUS=`: one line for people.
    pub status: Option<String>,
    /// `ERRNO=`
    pub errno: Option<i32>,
    /// `MAINPID=`
    pub main_pid: Option<i32>,
    /// `WATCHDOG=`
    pub watchdog: Option<Watchdog>,
    /// `WATCHDOG_USEC=`: the new heartbeat timeout, microseconds.
    pub watchdog_usec: Option<u64>,
    /// `EXTEND_TIMEOUT_USEC=`: this much more time for starting or stopping, microseconds.
    pub extend_timeout_usec: Option<u64>,
    /// `BARRIER=1`: the sender waits until all that it said before has been handled.
    pub barrier: bool,
    /// Known keys whose values made no sense.
    pub malformed: u32,
}

/// The value of `WATCHDOG=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watchdog {
    /// `1`: it lives.
    Alive,
    /// `trigger`: it has found itself hung.
    Trigger,
}

/// A datagram that says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoticeError {
    /// No byte.
    #[error("an empty datagram")]
    Empty,
    /// Over [`MAX_DATAGRAM`].
    #[error("a datagram over the limit of {MAX_DATAGRAM} bytes")]
    TooLong,
    /// A zero byte before the end.
    #[error("a datagram with a zero byte")]
    Zero,
    /// BARRIER together with others, which sd_notify(3) forbids.
    #[error("BARRIER=1 must be a datagram of its own")]
    MixedBarrier,
}

impl Notice {
    /// Its status, and in words why it fails.
    pub fn line_for_people(&self) -> Option<String> {
        let failure = self.errno.filter(|errno| *errno != 0);
        let failure =
            failure.map(|errno| format!("error {errno}: {}", nix::errno::Errno::from_raw(errno).desc()));
        match (&self.status, failure) {
            (Some(text), Some(failure)) => Some(format!("{text} ({failure})")),
            (text, failure) => text.clone().or(failure),
        }
    }

    /// True when it says "alive" and nothing else, so that one of many is enough.
    pub fn is_beat(&self) -> bool {
        self.watchdog == Some(Watchdog::Alive)
            && *self == Notice { watchdog: self.watchdog, ..Notice::default() }
    }
}

/// Reads one datagram. Unknown keys and file descriptor stores are ignored, as sd_notify(3) asks.
pub fn read(datagram: &[u8]) -> Result<Notice, NoticeError> {
    if datagram.len() > MAX_DATAGRAM {
        return Err(NoticeError::TooLong);
    }
    let text = datagram.strip_suffix(b"\0").unwrap_or(datagram);
    if text.contains(&0) {
        return Err(NoticeError::Zero);
    }
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err(NoticeError::Empty);
    }
    let mut notice = Notice::default();
    let mut lines = 0;
    for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        lines += 1;
        if let Some(at) = line.iter().position(|b| *b == b'=') {
            assign(&mut notice, &line[..at], &line[at + 1..]);
        }
    }
    if notice.barrier && lines > 1 {
        return Err(NoticeError::MixedBarrier);
    }
    Ok(notice)
}

fn assign(notice: &mut Notice, key: &[u8], value: &[u8]) {
    let understood = match key {
        b"READY" => flag(&mut notice.ready, value),
        b"RELOADING" => flag(&mut notice.reloading, value),
        b"STOPPING" => flag(&mut notice.stopping, value),
        b"BARRIER" => flag(&mut notice.barrier, value),
        b"MONOTONIC_USEC" => number(&mut notice.monotonic_usec, value),
        b"WATCHDOG_USEC" => number(&mut notice.watchdog_usec, value),
        b"EXTEND_TIMEOUT_USEC" => number(&mut notice.extend_timeout_usec, value),
        b"ERRNO" => number(&mut notice.errno, value),
        b"MAINPID" => {
            number(&mut notice.main_pid, value) && {
                notice.main_pid = notice.main_pid.filter(|pid| *pid > 0);
                notice.main_pid.is_some()
            }
        }
        b"STATUS" => match std::str::from_utf8(value) {
            Ok(text) => {
                notice.status = Some(text.chars().filter(|c| !c.is_control()).collect());
                true
            }
            Err(_) => false,
        },
        b"WATCHDOG" => {
            let said = match value {
                b"1" => Some(Watchdog::Alive),
                b"trigger" => Some(Watchdog::Trigger),
                _ => None,
            };
            // A later "alive" must not hide that the process has found itself hung.
            if notice.watchdog != Some(Watchdog::Trigger) {
                notice.watchdog = said.or(notice.watchdog);
            }
            said.is_some()
        }
        _ => true,
    };
    notice.malformed += u32::from(!understood);
}

fn flag(field: &mut bool, value: &[u8]) -> bool {
    *field |= value == b"1";
    value == b"1"
}

fn number<T: std::str::FromStr>(field: &mut Option<T>, value: &[u8]) -> bool {
    match std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok()) {
        Some(number) => {
            *field = Some(number);
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_redis_haproxy_and_networkd_send_is_understood() {
        let redis = read(b"STATUS=Ready to accept connections\nREADY=1\n").unwrap();
        assert_eq!(redis.status.as_deref(), Some("Ready to accept connections"));
        assert!(redis.ready && !redis.is_beat());
        let haproxy = read(b"READY=1\nMAINPID=4711\nSTATUS=Ready.\n").unwrap();
        assert_eq!((haproxy.ready, haproxy.main_pid), (true, Some(4711)));
        assert!(read(b"WATCHDOG=1").unwrap().is_beat());
        assert!(!read(b"WATCHDOG=1\nSTATUS=x").unwrap().is_beat());
    }

    #[test]
    fn every_known_key_is_read() {
        let all =
            b"RELOADING=1\nMONOTONIC_USEC=12\nSTOPPING=1\nERRNO=2\nWATCHDOG=trigger\nWATCHDOG_USEC=5000000\n\
                    EXTEND_TIMEOUT_USEC=7\nFDSTORE=1\nFDNAME=x\nX_OWN=1\nno assignment\nMAINPID=7";
        assert_eq!(
            read(all),
            Ok(Notice {
                reloading: true,
                monotonic_usec: Some(12),
                stopping: true,
                errno: Some(2),
                watchdog: Some(Watchdog::Trigger),
                watchdog_usec: Some(5_000_000),
                extend_timeout_usec: Some(7),
                main_pid: Some(7),
                ..Notice::default()
            })
        );
        assert!(read(b"BARRIER=1").unwrap().barrier);
    }

    #[test]
    fn nonsense_is_refused_or_counted_and_the_rest_is_heard() {
        assert_eq!(read(b""), Err(NoticeError::Empty));
        assert_eq!(read(b"\n \n"), Err(NoticeError::Empty));
        assert_eq!(read(&[b'A'; MAX_DATAGRAM + 1]), Err(NoticeError::TooLong));
        assert_eq!(read(b"READY=1\0READY=1"), Err(NoticeError::Zero));
        assert_eq!(read(b"BARRIER=1\nREADY=1"), Err(NoticeError::MixedBarrier));
        let notice =
            read(b"READY=yes\nMAINPID=-4\nERRNO=x\nWATCHDOG=2\nWATCHDOG_USEC=99999999999999999999999\nSTATUS=\xff\nSTOPPING=1\0")
                .unwrap();
        assert_eq!(notice, Notice { stopping: true, malformed: 6, ..Notice::default() });
    }

    #[test]
    fn a_process_that_found_itself_hung_is_not_hidden_by_a_beat() {
        assert_eq!(read(b"WATCHDOG=trigger\nWATCHDOG=1").unwrap().watchdog, Some(Watchdog::Trigger));
    }

    #[test]
    fn a_status_cannot_carry_control_characters_to_a_terminal() {
        assert_eq!(read(b"STATUS=a\x1b[31mb\rc").unwrap().status.as_deref(), Some("a[31mbc"));
    }

    proptest! {
        #[test]
        fn any_datagram_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let read_once = read(&bytes);
            prop_assert_eq!(&read_once, &read(&bytes));
            if let Ok(notice) = read_once {
                prop_assert!(notice.status.is_none_or(|s| s.len() <= bytes.len()));
            }
        }

        #[test]
        fn numbers_come_back(usec in any::<u64>(), errno in any::<i32>(), pid in 1..i32::MAX) {
            let text = format!("WATCHDOG_USEC={usec}\nERRNO={errno}\nMAINPID={pid}");
            let notice = read(text.as_bytes()).unwrap();
            prop_assert_eq!(notice.watchdog_usec, Some(usec));
            prop_assert_eq!(notice.errno, Some(errno));
            prop_assert_eq!(notice.main_pid, Some(pid));
            prop_assert_eq!(notice.malformed, 0);
        }
    }
}

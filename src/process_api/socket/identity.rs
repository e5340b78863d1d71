//! Who may speak on the sockets of an instance.
//!
//! Owns the rule: the socket is the identity, and a caller must belong to its instance. Where there are cgroups,
//! who lies inside the instance's belongs to it, whatever account it has changed to; else who runs as the
//! instance's account (or root) does, and processes of one account are not told apart (docs/protocol.md says
//! so). Reads /proc of the caller, nothing else.

use std::fs::File;
use std::io::Read;

use crate::keeper::cgroup;
use crate::keeper::process;
use crate::keeper::protocol::CgroupSupport;
use crate::spec::InstanceId;

/// The kernel makes the text as a whole, up to this size.
const PAGE: usize = 4096;

/// Whose sockets they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The account of the run.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// The main process, which needs no look at its cgroup; 0: not known (yet).
    pub main_pid: i32,
    /// What its processes are known by.
    pub known_by: KnownBy,
}

/// What the processes of an instance are known by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KnownBy {
    /// Their account: no cgroups here.
    #[default]
    Account,
    /// Their cgroup, which is told once the run is spawned. Until then nobody is heard, and what is said waits.
    CgroupToCome,
    /// Their cgroup, as /proc/PID/cgroup writes it: `/bigbrother/zone.3`.
    Cgroup(String),
}

/// Why a caller was turned away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// It runs as somebody else.
    #[error("uid {uid} is not the account of this instance (uid {expected})")]
    Account {
        /// The caller's.
        uid: u32,
        /// The instance's.
        expected: u32,
    },
    /// It lies in another cgroup.
    #[error("process {pid} is outside this instance's cgroup")]
    Cgroup {
        /// The caller.
        pid: i32,
    },
    /// It ended before it could be looked at.
    #[error("process {pid} ended before it could be identified")]
    Gone {
        /// The caller.
        pid: i32,
    },
}

impl Identity {
    /// Of the same account, another run: its processes are not known yet.
    pub(super) fn begin_anew(&self) -> Identity {
        let known_by = match self.known_by {
            KnownBy::Account => KnownBy::Account,
            _ => KnownBy::CgroupToCome,
        };
        Identity { main_pid: 0, known_by, ..self.clone() }
    }

    /// The process is of the run after this one, of which none is left. Whoever is gone as well is only known by account,
    /// where that is all that counts.
    pub(super) fn is_another(&self, pid: i32) -> bool {
        match self.known_by {
            KnownBy::Account => pid != self.main_pid,
            _ => process::lives(pid),
        }
    }

    /// Refuses a caller that does not belong to the instance.
    pub fn admit(&self, pid: i32, uid: u32) -> Result<(), Stranger> {
        let cgroup = match &self.known_by {
            KnownBy::Account if uid != self.uid && uid != 0 => {
                return Err(Stranger::Account { uid, expected: self.uid });
            }
            KnownBy::Account => return Ok(()),
            KnownBy::CgroupToCome => return Err(Stranger::Cgroup { pid }),
            KnownBy::Cgroup(cgroup) => cgroup,
        };
        if self.main_pid != 0 && pid == self.main_pid {
            return Ok(());
        }
        // 0: a sender in a PID namespace that is not below ours.
        if pid <= 0 {
            return Err(Stranger::Cgroup { pid });
        }
        match cgroups_of(pid) {
            Ok(text) if lies_within(&text, cgroup) => Ok(()),
            Ok(_) => Err(Stranger::Cgroup { pid }),
            Err(_) => Err(Stranger::Gone { pid }),
        }
    }
}

impl KnownBy {
    /// The cgroup in which this process lies; one that is gone already has left nothing but its account to know the rest
    /// by.
    pub fn cgroup_of(pid: i32) -> KnownBy {
        let text = cgroups_of(pid).unwrap_or_default();
        let cgroup = text.lines().find_map(|line| line.strip_prefix("0::"));
        cgroup.map_or(KnownBy::Account, |cgroup| KnownBy::Cgroup(cgroup.to_owned()))
    }
}

/// Where a keeper puts the runs that it starts: each has a cgroup there that is named for its instance. Learnt from the
/// first of them, because a look into /proc for each of hundreds that start at once costs all of them time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Games {
    /// No cgroups here.
    #[default]
    None,
    /// Not learnt yet.
    Somewhere,
    /// Below this one, as /proc/PID/cgroup writes it.
    Below(String),
}

impl Games {
    /// Of a keeper that has just been met.
    pub fn of(support: &CgroupSupport) -> Games {
        if *support == CgroupSupport::None { Games::None } else { Games::Somewhere }
    }

    /// What the processes of a run that is to be started will be known by.
    pub fn of_ordered(&self) -> KnownBy {
        if *self == Games::None { KnownBy::Account } else { KnownBy::CgroupToCome }
    }

    /// What those of a run that this keeper has started are known by. Of one that is gone already only the account is known
    /// while nothing has been learnt.
    pub fn of_started(&mut self, instance: &InstanceId, pid: i32) -> KnownBy {
        let name = format!("/{}", cgroup::name_of(instance));
        match self {
            Games::None => KnownBy::Account,
            Games::Below(games) => KnownBy::Cgroup(format!("{games}{name}")),
            Games::Somewhere => {
                let known_by = KnownBy::cgroup_of(pid);
                self.learn(&name, &known_by);
                known_by
            }
        }
    }

    /// A run's cgroup, of this name, is known: so is where the others lie.
    fn learn(&mut self, name: &str, known_by: &KnownBy) {
        if let KnownBy::Cgroup(path) = known_by
            && let Some(games) = path.strip_suffix(name)
        {
            *self = Games::Below(games.to_owned());
        }
    }

    /// What those of a run are known by that may have been started by another keeper, elsewhere.
    pub fn of_found(&self, pid: i32) -> KnownBy {
        if *self == Games::None { KnownBy::Account } else { KnownBy::cgroup_of(pid) }
    }
}

/// /proc/PID/cgroup. Read at once where a page holds it, as it does but for cgroups in cgroups in cgroups.
fn cgroups_of(pid: i32) -> std::io::Result<String> {
    let mut file = File::open(format!("/proc/{pid}/cgroup"))?;
    let mut text = vec![0; PAGE];
    let read = file.read(&mut text)?;
    text.truncate(read);
    if read == PAGE {
        file.read_to_end(&mut text)?;
    }
    String::from_utf8(text).map_err(std::io::Error::other)
}

/// True when the version 2 line of a /proc/PID/cgroup names the cgroup or one below it.
fn lies_within(text: &str, cgroup: &str) -> bool {
    text.lines()
        .filter_map(|line| line.strip_prefix("0::"))
        .filter_map(|path| path.strip_prefix(cgroup))
        .any(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_cgroup() -> String {
        let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        text.lines().find_map(|l| l.strip_prefix("0::")).expect("a cgroup2 hierarchy").to_owned()
    }

    #[test]
    fn a_cgroup_is_left_only_by_name() {
        let text = "12:pids:/bb/zone.30\n0::/bb/zone.3/inner\n";
        assert!(lies_within(text, "/bb/zone.3"));
        assert!(lies_within(text, "/bb/zone.3/inner"));
        assert!(!lies_within("0::/bb/zone.30\n", "/bb/zone.3"), "a longer name is another instance");
        assert!(!lies_within("3:memory:/bb/zone.3\n0::/\n", "/bb/zone.3"), "version 1 says nothing");
        assert!(!lies_within("", "/bb/zone.3"));
    }

    #[test]
    fn a_process_is_known_by_its_cgroup_and_one_that_is_gone_by_its_account() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(KnownBy::cgroup_of(own), KnownBy::Cgroup(own_cgroup()));
        assert_eq!(KnownBy::cgroup_of(0), KnownBy::Account);
    }

    #[test]
    fn runs_lie_beside_the_first_whose_cgroup_is_named_for_it() {
        let [first, second] = ["zone.0", "zone.1"].map(|id| id.parse::<InstanceId>().unwrap());
        let own = i32::try_from(std::process::id()).unwrap();
        let mut games = Games::of(&CgroupSupport::KillOnly);
        assert_eq!(games.of_ordered(), KnownBy::CgroupToCome);
        assert_eq!(games.of_started(&first, own), KnownBy::Cgroup(own_cgroup()), "looked at");
        assert_eq!(games, Games::Somewhere, "this cgroup is not named for the instance");
        games.learn("/instance-zone.0", &KnownBy::Cgroup("/a/instance-zone.0".to_owned()));
        let beside = KnownBy::Cgroup("/a/instance-zone.1".to_owned());
        assert_eq!(games.of_started(&second, own), beside, "not looked at");
        assert_eq!(
            games.of_found(own),
            KnownBy::Cgroup(own_cgroup()),
            "another keeper may have put it anywhere"
        );

        let mut none = Games::of(&CgroupSupport::None);
        let known = [none.of_ordered(), none.of_started(&first, own), none.of_found(own)];
        assert_eq!(known, [KnownBy::Account, KnownBy::Account, KnownBy::Account]);
    }

    #[test]
    fn only_the_account_and_root_are_admitted() {
        let identity = Identity { uid: 1000, ..Identity::default() };
        assert_eq!(identity.admit(1, 1000), Ok(()));
        assert_eq!(identity.admit(1, 0), Ok(()));
        assert_eq!(identity.admit(1, 1001), Err(Stranger::Account { uid: 1001, expected: 1000 }));
    }

    #[test]
    fn root_too_must_be_inside_the_cgroup() {
        let me = std::process::id() as i32;
        let elsewhere =
            Identity { known_by: KnownBy::Cgroup("/elsewhere".to_owned()), ..Identity::default() };
        assert_eq!(elsewhere.admit(me, 0), Err(Stranger::Cgroup { pid: me }));
        assert_eq!(elsewhere.admit(0, 0), Err(Stranger::Cgroup { pid: 0 }));
        assert_eq!(elsewhere.admit(i32::MAX, 0), Err(Stranger::Gone { pid: i32::MAX }));
        assert_eq!(Identity { main_pid: me, ..elsewhere }.admit(me, 0), Ok(()));
        let here = own_cgroup();
        if here != "/" {
            let at_home = Identity { known_by: KnownBy::Cgroup(here), ..Identity::default() };
            assert_eq!(at_home.admit(me, 0), Ok(()));
            assert_eq!(
                at_home.admit(me, 65_534),
                Ok(()),
                "one that gave up its account belongs to it all the same"
            );
        }
    }
}

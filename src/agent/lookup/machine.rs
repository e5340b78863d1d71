//! What is asked of the machine for a command: accounts, programs, folders. May block for as long as a user
//! database, a file system or a disk likes to; runs on the threads of [`super`] only.

use std::ffi::CString;
use std::fs::{DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::{Errand, Found, Progress, Step};
use crate::config::HostPolicy;
use crate::keeper::protocol::Account;

/// The search path of a bare program name, and the PATH of the processes.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games";

/// Variables by which the loader takes code from elsewhere: it is as good as a program.
pub const LIBRARIES: [&str; 3] = ["LD_AUDIT", "LD_LIBRARY_PATH", "LD_PRELOAD"];

/// Who may enter a folder that is made: its account and its group.
const MODE: u32 = 0o750;

/// Why a command cannot be executed here.
#[derive(Debug, thiserror::Error)]
pub enum LookUpError {
    /// No such user.
    #[error("there is no user {0} on this host")]
    NoUser(String),
    /// No such group.
    #[error("there is no group {0} on this host")]
    NoGroup(String),
    /// The user database cannot be asked.
    #[error("cannot look up {0}")]
    Lookup(String, #[source] nix::errno::Errno),
    /// No such program.
    #[error("there is no program {0} in {PATH}")]
    NoProgram(String),
    /// The host's policy forbids it.
    #[error("host.policy forbids {0}")]
    Policy(String),
    /// A folder cannot be made.
    #[error("cannot make {path}: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Runs an errand.
pub fn look_up(errand: &Errand, progress: &Progress) -> Result<Found, LookUpError> {
    progress.begin(Step::Account);
    let account = match &errand.user {
        Some(user) => Some(account(user, errand.group.as_deref(), &errand.policy)?),
        None => None,
    };
    check_user(&errand.policy, errand.user.as_deref())?;
    progress.begin(Step::Program);
    let mut program = find(&errand.program)?;
    if !errand.policy.programs.is_empty() {
        // What was judged is what is executed, also when a link is changed in between.
        program = allowed(&errand.policy, "program", &program)?;
        check_libraries(&errand.policy, &errand.libraries)?;
    }
    if let Some(folder) = &errand.folder {
        progress.begin(Step::Folder);
        make_folder(folder.as_ref(), account.as_ref().map(|(account, _)| account))
            .map_err(|source| LookUpError::Folder { path: folder.into(), source })?;
    }
    Ok(Found { account, program })
}

/// One that is there is left as it is.
fn make_folder(path: &Path, account: Option<&Account>) -> std::io::Result<()> {
    let make = || DirBuilder::new().mode(MODE).create(path);
    let made = match make() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            make()
        }
        made => made,
    };
    if let Err(error) = made {
        return if path.is_dir() { Ok(()) } else { Err(error) };
    }
    // A disk writes down each change of a folder, so that nothing is set that is so already.
    if path.metadata()?.permissions().mode() & 0o777 != MODE {
        std::fs::set_permissions(path, Permissions::from_mode(MODE))?;
    }
    match account {
        Some(account) => std::os::unix::fs::chown(path, Some(account.uid), Some(account.gid)),
        None => Ok(()),
    }
}

fn account(user: &str, group: Option<&str>, policy: &HostPolicy) -> Result<(Account, String), LookUpError> {
    let found = User::from_name(user).map_err(|errno| LookUpError::Lookup(user.to_owned(), errno))?;
    let found = found.ok_or_else(|| LookUpError::NoUser(user.to_owned()))?;
    let gid: Gid = match group {
        None => found.gid,
        Some(group) => {
            Group::from_name(group)
                .map_err(|errno| LookUpError::Lookup(group.to_owned(), errno))?
                .ok_or_else(|| LookUpError::NoGroup(group.to_owned()))?
                .gid
        }
    };
    let name = CString::new(user).map_err(|_| LookUpError::NoUser(user.to_owned()))?;
    if !policy.users.is_empty() && gid != found.gid {
        // A group may be as good as another account: disk, docker, shadow.
        let own = getgrouplist(&name, found.gid).map_err(|e| LookUpError::Lookup(user.to_owned(), e))?;
        if !own.contains(&gid) {
            let group = group.unwrap_or_default();
            return Err(LookUpError::Policy(format!("group {group}, which {user} is not in")));
        }
    }
    let groups = getgrouplist(&name, gid).map_err(|errno| LookUpError::Lookup(user.to_owned(), errno))?;
    let account = Account {
        uid: found.uid.as_raw(),
        gid: gid.as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
    };
    Ok((account, found.dir.to_string_lossy().into_owned()))
}

/// An absolute path stays; a bare name is searched for.
fn find(program: &str) -> Result<String, LookUpError> {
    if program.starts_with('/') {
        return Ok(program.to_owned());
    }
    let executable = |path: &PathBuf| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let found = PATH.split(':').map(|folder| Path::new(folder).join(program)).find(executable);
    found
        .map(|path| path.to_string_lossy().into_owned())
        .ok_or_else(|| LookUpError::NoProgram(program.to_owned()))
}

fn check_user(policy: &HostPolicy, user: Option<&str>) -> Result<(), LookUpError> {
    if policy.users.is_empty() {
        return Ok(());
    }
    let user = match user {
        Some(user) => user.to_owned(),
        None => User::from_uid(Uid::effective()).ok().flatten().map(|own| own.name).unwrap_or_default(),
    };
    match policy.users.contains(&user) {
        true => Ok(()),
        false => Err(LookUpError::Policy(format!("user {user}"))),
    }
}

/// Where a path leads to, if that lies below the allowed folders: links and dots must not lead out of them.
fn allowed(policy: &HostPolicy, what: &str, path: &str) -> Result<String, LookUpError> {
    let forbidden = |shown: &Path, why: &str| {
        let below = policy.programs.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>();
        LookUpError::Policy(format!("{what} {}: {why} {}", shown.display(), below.join(", ")))
    };
    if !path.starts_with('/') {
        return Err(forbidden(Path::new(path), "it is no absolute path below"));
    }
    let Ok(real) = std::fs::canonicalize(path) else {
        return Err(forbidden(
            Path::new(path),
            "it is not there, or cannot be looked at, to see whether it lies below",
        ));
    };
    let below = |folder: &PathBuf| real.starts_with(std::fs::canonicalize(folder).as_ref().unwrap_or(folder));
    match policy.programs.iter().any(below) {
        true => Ok(real.to_string_lossy().into_owned()),
        false => Err(forbidden(&real, "it does not lie below")),
    }
}

fn check_libraries(policy: &HostPolicy, libraries: &[String]) -> Result<(), LookUpError> {
    // The loader parts them by both; an empty one is the folder that the program starts in.
    let mut each = libraries.iter().flat_map(|value| value.split([':', ' ']));
    each.try_for_each(|path| allowed(policy, "library", path).map(drop))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::Arc;

    use super::*;

    /// A folder with a program that is allowed and one that is not.
    struct Folders {
        root: tempfile::TempDir,
    }

    impl Folders {
        fn new() -> Folders {
            let root = tempfile::tempdir().unwrap();
            for folder in ["game", "game/lib", "other"] {
                std::fs::create_dir(root.path().join(folder)).unwrap();
            }
            for program in ["game/zone", "other/sh", "other/tool"] {
                let path = root.path().join(program);
                std::fs::write(&path, "#!/bin/sh\n").unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            Folders { root }
        }

        fn path(&self, below: &str) -> String {
            self.root.path().join(below).to_string_lossy().into_owned()
        }

        fn look_up(&self, program: &str, libraries: &[&str]) -> Result<Found, LookUpError> {
            let programs = vec![self.path("game").into(), self.path("other/tool").into()];
            let policy = Arc::new(HostPolicy { users: Vec::new(), programs });
            let libraries = libraries.iter().map(|text| (*text).to_owned()).collect();
            let program = program.to_owned();
            look_up(&Errand { program, libraries, policy, ..Errand::default() }, &Progress::default())
        }
    }

    fn forbidden(result: Result<Found, LookUpError>) -> String {
        match result {
            Err(LookUpError::Policy(why)) => why,
            other => panic!("not forbidden by the policy: {other:?}"),
        }
    }

    #[test]
    fn programs_lie_below_the_folders_wherever_links_and_dots_lead() {
        let folders = Folders::new();
        let path = |below: &str| folders.path(below);
        symlink(path("other/sh"), path("game/out")).unwrap();
        symlink(path("game/zone"), path("other/in")).unwrap();
        symlink(path("other"), path("game/folder")).unwrap();
        symlink(path("nowhere"), path("game/dangling")).unwrap();
        let real = std::fs::canonicalize(path("game/zone")).unwrap();
        for good in ["game/zone", "other/in", "game/../game/zone", "other/../game/./zone"] {
            assert_eq!(folders.look_up(&path(good), &[]).unwrap().program, real.to_string_lossy(), "{good}");
        }
        folders.look_up(&path("other/tool"), &[]).expect("a program of its own");
        for bad in
            ["other/sh", "game/out", "game/folder/sh", "game/../other/sh", "gamer/zone", "other/tool/.."]
        {
            forbidden(folders.look_up(&path(bad), &[]));
        }
        // What cannot be told is not allowed: it may come to be after it was looked at.
        for bad in ["game/dangling", "game/missing", "game/missing/../../other/sh"] {
            assert!(forbidden(folders.look_up(&path(bad), &[])).contains("not there"), "{bad}");
        }
        forbidden(folders.look_up("sh", &[]));
        forbidden(folders.look_up(&format!("../..{}", path("other/sh")), &[]));
    }

    #[test]
    fn libraries_that_the_environment_names_lie_there_too() {
        let folders = Folders::new();
        let (program, lib) = (folders.path("game/zone"), folders.path("game/lib"));
        folders.look_up(&program, &[&lib, &format!("{lib}:{}", folders.path("game"))]).unwrap();
        for bad in [
            folders.path("other"),
            format!("{lib}:{}", folders.path("other")),
            format!("{lib} {}", folders.path("other/sh")),
            format!("{lib}:"),
            "lib".to_owned(),
            "$ORIGIN/../../other".to_owned(),
            format!("{lib}/../../other"),
        ] {
            forbidden(folders.look_up(&program, &[&bad]));
        }
    }

    #[test]
    fn users_are_those_of_the_policy_with_their_own_groups() {
        let own = User::from_uid(Uid::effective()).unwrap().unwrap();
        let own_group = Group::from_gid(own.gid).unwrap().unwrap().name;
        let run = |users: &[&str], user: Option<&str>, group: Option<&str>| {
            let users = users.iter().map(|user| (*user).to_owned()).collect();
            let policy = Arc::new(HostPolicy { users, programs: Vec::new() });
            let (user, group) = (user.map(str::to_owned), group.map(str::to_owned));
            let errand = Errand { user, group, program: "/bin/true".into(), policy, ..Errand::default() };
            look_up(&errand, &Progress::default())
        };
        run(&[], Some("games"), Some("disk")).expect("without a policy all are allowed");
        run(&["games"], Some("games"), None).unwrap();
        run(&["games"], Some("games"), Some("games")).expect("its own group");
        run(&[&own.name], None, None).expect("the agent's own account, by its name");
        run(&[&own.name], Some(&own.name), Some(&own_group)).unwrap();
        assert!(forbidden(run(&["games"], Some("nobody"), None)).contains("user nobody"));
        assert!(forbidden(run(&["games"], None, None)).contains(&format!("user {}", own.name)));
        assert!(forbidden(run(&["games"], Some("games"), Some("disk"))).contains("group disk"));
        assert!(matches!(run(&["5"], Some("5"), None), Err(LookUpError::NoUser(_))), "a number is no name");
    }
}

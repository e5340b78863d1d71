//! What is asked of the machine for a command: accounts, programs, folders. May block for as long as a user
//! database, a file system or a disk likes to; runs on the threads of [`super`] only.

use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::{Errand, Found, Progress, Step};
use crate::config::HostPolicy;
use crate::keeper::protocol::Account;

/// The search path of a bare program name, and the PATH of the processes.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games";

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
        Some(user) => Some(account(user, errand.group.as_deref())?),
        None => None,
    };
    check_user(&errand.policy, errand.user.as_deref())?;
    progress.begin(Step::Program);
    let program = find(&errand.program)?;
    check_program(&errand.policy, &program)?;
    if let Some(folder) = &errand.folder {
        progress.begin(Step::Folder);
        make_folder(folder, account.as_ref().map(|(account, _)| account))
            .map_err(|source| LookUpError::Folder { path: folder.clone(), source })?;
    }
    Ok(Found { account, program })
}

/// One that is there is left as it is.
fn make_folder(path: &Path, account: Option<&Account>) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o750))?;
    match account {
        Some(account) => std::os::unix::fs::chown(path, Some(account.uid), Some(account.gid)),
        None => Ok(()),
    }
}

fn account(user: &str, group: Option<&str>) -> Result<(Account, String), LookUpError> {
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

fn check_program(policy: &HostPolicy, program: &str) -> Result<(), LookUpError> {
    if policy.programs.is_empty() {
        return Ok(());
    }
    // Links and dots must not lead out of the allowed folders.
    let real = std::fs::canonicalize(program).unwrap_or_else(|_| PathBuf::from(program));
    let below = |folder: &PathBuf| real.starts_with(std::fs::canonicalize(folder).as_ref().unwrap_or(folder));
    match policy.programs.iter().any(below) {
        true => Ok(()),
        false => Err(LookUpError::Policy(format!("program {}", real.display()))),
    }
}

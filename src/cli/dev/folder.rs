//! The folder of a demonstration: its cluster.toml, sockets, logs and data.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::api::Address;
use crate::cli::exit::Failure;
use crate::cli::serve::own_program;

/// Silence after which a demo server is hung.
pub const HANG_TIMEOUT: Duration = Duration::from_millis(1_000);

/// The folder; made by us, and removed unless the user named it.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    kept: bool,
}

impl Folder {
    /// Makes the folder and all that an agent needs in it.
    pub fn make(named: Option<PathBuf>, zones: u32) -> Result<Folder, Failure> {
        let program = own_program()?;
        let folder = match named {
            Some(path) => Folder { path: empty(path)?, kept: true },
            None => Folder { path: fresh()?, kept: false },
        };
        let text = cluster_toml(&program, &folder.path, zones);
        std::fs::write(folder.config(), text)
            .map_err(|source| Failure::Local { what: "cannot write cluster.toml".to_owned(), source })?;
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The agent's file.
    pub fn config(&self) -> PathBuf {
        self.path.join("cluster.toml")
    }

    /// What the agent writes to stderr.
    pub fn agent_log(&self) -> PathBuf {
        self.path.join("agent.log")
    }

    /// Where the agent answers.
    pub fn api(&self) -> Address {
        Address::Unix(self.path.join("run/api.sock"))
    }

    /// Removes it; the path if it is kept.
    pub fn remove(self) -> Result<Option<PathBuf>, Failure> {
        if self.kept {
            return Ok(Some(self.path));
        }
        let what = format!("cannot remove {}", self.path.display());
        std::fs::remove_dir_all(&self.path).map_err(|source| Failure::Local { what, source })?;
        Ok(None)
    }
}

/// A folder that nobody had before, for this user only.
fn fresh() -> Result<PathBuf, Failure> {
    let parent = std::env::temp_dir();
    loop {
        let path = parent.join(format!("bigbrother-dev-{:06x}", fastrand::u32(..1 << 24)));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                let what = format!("cannot make a folder in {} (see TMPDIR, --dir)", parent.display());
                return Err(Failure::Local { what, source });
            }
        }
    }
}

/// The named folder, which must hold nothing of anybody.
fn empty(path: PathBuf) -> Result<PathBuf, Failure> {
    let failed = |source| Failure::Local {
        what: format!("cannot use {}; name a folder that you may write to", path.display()),
        source,
    };
    std::fs::create_dir_all(&path).map_err(failed)?;
    let absolute = path.canonicalize().map_err(failed)?;
    if absolute.read_dir().map_err(failed)?.next().is_some() {
        return Err(Failure::Usage(format!("{} is not empty: name a new folder", path.display())));
    }
    Ok(absolute)
}

/// The demonstration's desired set, as an operator would write it.
fn cluster_toml(program: &Path, folder: &Path, zones: u32) -> String {
    let program = quoted(&program.display().to_string().replace('{', "{{").replace('}', "}}"));
    let data = quoted(&folder.join("data").display().to_string());
    let run = quoted(&folder.join("run").display().to_string());
    format!(
        r#"# Written by `bigbrother dev`. Change it and try `bigbrother plan` and `bigbrother apply` on it.
[cluster]
name = "dev"

[host]
name = "dev"
data_dir = {data}
runtime_dir = {run}
api = ""

[process.zone]
command = [{program}, "demo-zone", "--port", "{{port.game}}", "--name", "{{instance}}"]
count = {zones}
ports = {{ game = "udp" }}
ready = {{ mode = "native", timeout = "10s" }}
heartbeat = {{ mode = "native", interval = "200ms", timeout = "{}ms" }}
stop = {{ timeout = "2s" }}
logs = {{ size = "1MiB", files = 2 }}
"#,
        HANG_TIMEOUT.as_millis()
    )
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_toml_whatever_the_paths() {
        let text = cluster_toml(Path::new("/a \"b\"/{x}/bb"), Path::new("/tmp/d'"), 7);
        let file: toml::Table = text.parse().unwrap();
        let zone = &file["process"]["zone"];
        assert_eq!(zone["count"].as_integer(), Some(7));
        assert_eq!(zone["command"][0].as_str(), Some("/a \"b\"/{{x}}/bb"));
        assert_eq!(zone["command"][3].as_str(), Some("{port.game}"));
        assert_eq!(file["host"]["runtime_dir"].as_str(), Some("/tmp/d'/run"));
    }

    #[test]
    fn a_named_folder_must_be_empty_and_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("x/y");
        let folder = Folder::make(Some(path.clone()), 1).unwrap();
        assert!(folder.config().is_file());
        assert!(matches!(Folder::make(Some(path.clone()), 1), Err(Failure::Usage(_))));
        assert_eq!(folder.remove().unwrap(), Some(path.canonicalize().unwrap()));
        assert!(path.exists());
    }

    #[test]
    fn a_fresh_folder_is_private_and_removed() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::make(None, 1).unwrap();
        let path = folder.path().to_owned();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(folder.remove().unwrap(), None);
        assert!(!path.exists());
    }
}

//! Who ran an exclusive instance when, by its own word.
//!
//! Each run appends `host run boottime` to its instance's file as long as it lives. No two runs' intervals may
//! overlap: both clocks are the machine's one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The program; {folder} is the shared one. The first line is written before anything else is done.
pub const SCRIPT: &str = r#"
import os, time
out = os.open(FOLDER + "/" + os.environ["BIGBROTHER_INSTANCE"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
who = os.environ["BIGBROTHER_HOST"] + " " + os.environ["BIGBROTHER_RUN"] + " "
while True:
    os.write(out, (who + str(time.clock_gettime_ns(time.CLOCK_BOOTTIME)) + "\n").encode())
    time.sleep(0.02)
"#;

/// Every pair of runs that lived at the same time.
pub fn overlaps(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for file in fs::read_dir(folder).unwrap().flatten() {
        let text = fs::read_to_string(file.path()).unwrap();
        let mut runs: BTreeMap<(String, u64), (u64, u64)> = BTreeMap::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [host, run, at] = words[..] else { panic!("{line:?} in {:?}", file.path()) };
            let (run, at): (u64, u64) = (run.parse().unwrap(), at.parse().unwrap());
            let lived = runs.entry((host.to_owned(), run)).or_insert((at, at));
            lived.1 = lived.1.max(at);
        }
        let mut lived: Vec<_> = runs.into_iter().map(|(who, (from, until))| (from, until, who)).collect();
        lived.sort();
        for pair in lived.windows(2) {
            let [(_, until, before), (from, _, after)] = pair else { unreachable!("two") };
            if from <= until {
                found.push(format!(
                    "{:?}: {before:?} lived until {until}, {after:?} from {from}",
                    file.file_name()
                ));
            }
        }
    }
    found
}

/// How many runs were seen of all instances.
pub fn runs(folder: &Path) -> usize {
    let files = fs::read_dir(folder).unwrap().flatten();
    let count = |text: String| {
        let who = text.lines().filter_map(|line| line.rsplit_once(' ')).map(|(who, _)| who.to_owned());
        who.collect::<std::collections::BTreeSet<_>>().len()
    };
    files.map(|file| count(fs::read_to_string(file.path()).unwrap())).sum()
}

#[test]
fn two_runs_at_once_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| fs::write(folder.path().join("arena.0"), text).unwrap();
    write("alpha 1 10\nalpha 1 20\nbeta 1 21\nbeta 1 40\nalpha 2 41\n");
    assert_eq!(overlaps(folder.path()), Vec::<String>::new());
    assert_eq!(runs(folder.path()), 3);
    write("alpha 1 10\nbeta 1 15\nalpha 1 20\n");
    assert_eq!(overlaps(folder.path()).len(), 1);
}

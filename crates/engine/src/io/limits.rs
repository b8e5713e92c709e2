//! What probing says under the limits of an ordinary user. Limits are a process's, so it runs in a process of its own.

use std::env;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::{auto, by_name, probe};
use crate::ErrorKind;
use crate::pool::Pool;

/// Set in the child's environment.
const ALONE: &str = "MAPRAM_TEST_ALONE";
/// What most distributions let a user lock.
const LOCKED_BYTES: u64 = 64 << 10;
/// More queues of the greatest depth than that is enough for.
const TOO_MANY: usize = 8;
const DEPTH: u32 = 256;

#[test]
fn a_probe_meets_what_the_transfer_would_meet() {
    if env::var_os(ALONE).is_some() {
        become_ordinary();
        ["io-uring", "tokio-uring"].into_iter().for_each(check_engine);
        return;
    }
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["io::limits::a_probe_meets_what_the_transfer_would_meet", "--exact", "--nocapture"]);
    let output = child.env(ALONE, "").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    eprintln!("{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("1 passed"));
}

/// Takes the limit and the lack of privilege of an ordinary user.
fn become_ordinary() {
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, sets).unwrap();
    let maximum = getrlimit(Resource::Memlock).maximum;
    let current = Some(maximum.map_or(LOCKED_BYTES, |bytes| bytes.min(LOCKED_BYTES)));
    setrlimit(Resource::Memlock, Rlimit { current, maximum }).unwrap();
}

fn check_engine(name: &str) {
    if let Err(error) = probe(name, 1, 1) {
        return eprintln!("skipped: {error}");
    }
    let Err(error) = probe(name, DEPTH, TOO_MANY) else {
        return eprintln!("skipped: this kernel does not count rings as locked memory");
    };
    assert_eq!(error.kind, ErrorKind::HostUnsupported);
    assert!(error.message.contains("RLIMIT_MEMLOCK"), "{error}");
    assert_eq!(auto(DEPTH, TOO_MANY).unwrap().name(), "blocking");
    let most = (1..TOO_MANY).take_while(|queues| probe(name, DEPTH, *queues).is_ok()).last();
    let most = most.unwrap_or_else(|| panic!("not even one queue of {name}"));
    // The kernel has not torn the rings of one probe down yet when the next one makes its own.
    (0..3).for_each(|_| assert_eq!(probe(name, DEPTH, most).unwrap().name(), name));
    let pool = Pool::new(1, 4096).unwrap();
    let engine = by_name(name).unwrap();
    let queues: Vec<_> = (0..most).map(|_| engine.queue(DEPTH, &pool)).collect();
    assert!(queues.iter().all(|queue| queue.is_ok()), "{name} was probed and then failed");
}

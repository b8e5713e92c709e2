//! Whose memory cgroup pays for a page (cgroups(7)).

/// Whether memory that we touch first is charged to the cgroup that process `pid` is in. `false` if that cannot be told.
pub(crate) fn shares_memory_cgroup(pid: i32) -> bool {
    let of = |process: String| {
        let text = std::fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
        memory_cgroup(&text).map(str::to_owned)
    };
    let own = of("self".to_owned());
    own.is_some() && own == of(pid.to_string())
}

/// The path of the memory cgroup in the content of /proc/PID/cgroup: that of version 1's memory controller, or else that of version 2.
fn memory_cgroup(text: &str) -> Option<&str> {
    let lines = || text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let is_memory = |(controllers, _): &(&str, &str)| controllers.split(',').any(|name| name == "memory");
    let unified = || lines().find(|(controllers, _)| controllers.is_empty());
    lines().find(is_memory).or_else(unified).map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_name_the_memory_cgroup() {
        assert_eq!(memory_cgroup("5:cpu,memory:/a:b\n1:name=systemd:/c\n0::/d\n"), Some("/a:b"));
        assert_eq!(memory_cgroup("5:cpu:/a\n0::/d\n"), Some("/d"));
        assert_eq!(memory_cgroup("5:cpu:/a\n"), None);
        assert!(shares_memory_cgroup(std::process::id().cast_signed()));
        assert!(!shares_memory_cgroup(0));
    }
}

//! The lines that README tells a person to type, as they stand there.

/// README's blocks of lines below `## Install`: the coordinator's, and a VM's.
pub(crate) struct InstallLines {
    /// For the coordinator, once.
    pub(crate) coordinator: Vec<String>,
    /// For each VM.
    pub(crate) vm: Vec<String>,
}

const README: &str = include_str!("../../../README.md");

impl InstallLines {
    /// Takes them out of README.
    pub(crate) fn read() -> Self {
        let (_, section) = README.split_once("\n## Install\n").expect("README has the section Install");
        let section = section.split("\n## ").next().unwrap_or_default();
        let mut blocks = section.split("\n```").skip(1).step_by(2).map(lines);
        let mut next = |what: &str| blocks.next().unwrap_or_else(|| panic!("README has no lines for {what}"));
        Self { coordinator: next("the coordinator"), vm: next("a VM") }
    }
}

/// The lines of a block. What a comment tells to type then is a line of its own.
fn lines(block: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in block.lines().skip(1).filter(|line| !line.trim().is_empty()) {
        lines.push(line.to_owned());
        if let Some((_, then)) = line.split_once("then: ") {
            lines.push(then.to_owned());
        }
    }
    lines
}

//! All that the laws know of the code.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use crate::imports::{self, Import, Slices};
use crate::modules::{Modules, Root, Sources};
use crate::names::{self, Types};
use crate::workspace::everything;

/// What the laws know of the code.
pub(crate) struct House {
    pub(crate) modules: Modules,
    /// Who imports whom, within each package.
    pub(crate) imports: BTreeSet<Import>,
    pub(crate) types: Types,
    pub(crate) slices: Slices,
}

impl House {
    /// Reads the code of all targets.
    pub(crate) fn new(sources: &Sources, roots: &[Root]) -> Self {
        let (modules, syntax) = Modules::new(sources, roots);
        let slices = imports::slices(&modules, &syntax);
        let imports = imports::imports(&modules, &syntax, &slices);
        let types = names::types(&modules, &syntax);
        Self { modules, imports, types, slices }
    }

    /// Returns the workspace as it lies on disk.
    pub(crate) fn of_disk() -> &'static Self {
        static HOUSE: OnceLock<House> = OnceLock::new();
        HOUSE.get_or_init(|| {
            let (sources, roots) = everything();
            Self::new(&sources, &roots)
        })
    }

    /// Returns the imports between files of a package.
    pub(crate) fn of_package<'a>(&'a self, package: &str) -> impl Iterator<Item = &'a Import> {
        let folder = format!("{package}/");
        self.imports.iter().filter(move |import| import.from.starts_with(&folder))
    }
}

//! Arrays.

use std::marker::PhantomData;
use std::sync::Mutex;

use super::{Stored, lock};
use crate::error::Result;
use crate::map::{Typed, check_index};
use crate::shape::Slots;

/// As the kernel's [`Array`](crate::Array): every element is there, zero at first.
#[derive(Debug)]
pub struct Array<V> {
    name: String,
    length: u32,
    elements: Mutex<Vec<Vec<u8>>>,
    types: Typed<V>,
}

impl<V: Stored> Array<V> {
    /// An array of zeroes; the name is for errors.
    pub fn new(name: &str, length: u32) -> Result<Self> {
        let zero = V::zero(name)?;
        Ok(Self {
            name: name.to_owned(),
            length,
            elements: Mutex::new(vec![zero; length as usize]),
            types: PhantomData,
        })
    }
}

impl<V: Stored> Slots<V> for Array<V> {
    fn get(&self, index: u32) -> Result<V> {
        check_index(&self.name, index, self.length)?;
        Ok(V::load(&lock(&self.elements)[index as usize]))
    }

    fn set(&self, index: u32, value: &V) -> Result<()> {
        check_index(&self.name, index, self.length)?;
        lock(&self.elements)[index as usize] = value.store(&self.name)?;
        Ok(())
    }

    fn values(&self) -> Result<Vec<V>> {
        Ok(lock(&self.elements).iter().map(|element| V::load(element)).collect())
    }

    fn len(&self) -> u32 {
        self.length
    }
}

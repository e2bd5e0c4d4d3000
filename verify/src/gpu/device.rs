//! [`Device`]: a graphics processor, the pipelines made for it, and the commands on their way to it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kernels::shaders::Shader;
use wgpu::util::DeviceExt;
use wgpu::{Buffer, BufferUsages, Features};

use super::pool::Pool;
use crate::error::{Error, Result};

/// What every kernel needs of an adapter.
const NEEDED: Features = Features::IMMEDIATES;

/// What kernels make use of where it is.
const WELCOME: Features = Features::SHADER_F16
    .union(Features::SUBGROUP)
    .union(Features::MAPPABLE_PRIMARY_BUFFERS)
    .union(Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

/// Bytes of parameters that kernels take.
const IMMEDIATES: u32 = 128;

/// No binding is larger, whatever the adapter says: beyond, indices miscompute silently
/// (<https://github.com/gfx-rs/wgpu/issues/10305>).
const LARGEST_BINDING: u64 = (4 << 30) - (1 << 20);

/// Dispatches that are handed over at once.
const BATCH: usize = 64;

/// Bytes of weights that may be on their way to the device: what one window of work needs, and the next.
const IN_FLIGHT: u64 = 2 << 30;

/// A graphics processor.
pub struct Device {
    /// Its name, and how it is driven.
    pub info: wgpu::AdapterInfo,
    /// What it has of what kernels make use of.
    pub features: Features,
    /// The largest binding, in bytes.
    pub binding: u64,
    /// Which products it can do with cooperative matrices.
    pub(super) cooperative: Cooperative,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) pool: Pool,
    pipelines: Mutex<HashMap<String, Arc<Pipeline>>>,
    recorder: Mutex<Recorder>,
    /// Formats that it was seen to decode.
    decoded: Mutex<HashSet<String>>,
    fault: Arc<Mutex<Option<Fault>>>,
    /// Gets a line for the user.
    pub(super) tell: fn(&str),
}

/// What went wrong.
struct Fault {
    problem: String,
    /// Whether the device is gone.
    lost: bool,
}

/// Cooperative matrices of 8 × 8 elements that sum in `f32`, by the type of what is multiplied.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cooperative {
    pub f32: bool,
    pub f16: bool,
}

impl Cooperative {
    fn of(adapter: &wgpu::Adapter) -> Cooperative {
        use wgpu::CooperativeScalarType::{F16, F32};
        if !adapter.features().contains(Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(Features::SUBGROUP)) {
            return Cooperative::default();
        }
        let all = adapter.cooperative_matrix_properties();
        let has = |of| {
            let sizes = |m: u32, n: u32, k: u32| (m, n, k) == (8, 8, 8);
            all.iter().any(|p| sizes(p.m_size, p.n_size, p.k_size) && (p.ab_type, p.cr_type) == (of, F32))
        };
        Cooperative { f32: has(F32), f16: has(F16) }
    }
}

struct Pipeline {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroupLayout,
}

/// Commands that were not handed over yet.
#[derive(Default)]
struct Recorder {
    encoder: Option<wgpu::CommandEncoder>,
    dispatches: usize,
    /// Bytes uploaded since the device was waited for.
    uploaded: u64,
}

/// A buffer, or a part of it, that a kernel reads or writes.
pub(super) enum Binding<'a> {
    Read(&'a Buffer, Range<u64>),
    Write(&'a Buffer, Range<u64>),
}

impl<'a> Binding<'a> {
    pub fn read(buffer: &'a Buffer) -> Binding<'a> {
        Binding::Read(buffer, 0..buffer.size())
    }

    fn parts(&self) -> (&'a Buffer, &Range<u64>, bool) {
        match self {
            Binding::Read(buffer, range) => (buffer, range, true),
            Binding::Write(buffer, range) => (buffer, range, false),
        }
    }
}

/// A mutex whose holder panicked holds what it held.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.info.name, self.info.backend)
    }
}

impl Device {
    /// Opens an adapter. `tell` gets a line for the user whenever something is done otherwise than was asked for.
    ///
    /// # Errors
    /// [`Error::Device`] if it lacks what kernels need, or refuses.
    pub fn open(adapter: &wgpu::Adapter, tell: fn(&str)) -> Result<Device> {
        let info = adapter.get_info();
        let refused = |problem: String| Error::Device { device: info.name.clone(), problem };
        if !adapter.features().contains(NEEDED) {
            return Err(refused(format!("has no {NEEDED:?}, which every kernel needs")));
        }
        let features = NEEDED | (adapter.features() & WELCOME);
        let theirs = adapter.limits();
        let binding = theirs.max_storage_buffer_binding_size.min(theirs.max_buffer_size).min(LARGEST_BINDING);
        let limits = wgpu::Limits { max_immediate_size: IMMEDIATES, ..theirs };
        let descriptor = wgpu::DeviceDescriptor {
            label: None,
            required_features: features,
            required_limits: limits,
            // SAFETY: cooperative matrices are used as their documentation says: 8×8, loaded, multiplied and stored by whole subgroups.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|error| refused(error.to_string()))?;
        let fault = Arc::new(Mutex::new(None));
        let noted: Arc<Mutex<Option<Fault>>> = fault.clone();
        device.on_uncaptured_error(Arc::new(move |found: wgpu::Error| {
            lock(&noted).get_or_insert(Fault { problem: found.to_string(), lost: false });
        }));
        let noted = fault.clone();
        device.set_device_lost_callback(move |reason, message| {
            *lock(&noted) = Some(Fault { problem: format!("lost ({reason:?}): {message}"), lost: true });
        });
        Ok(Device {
            info,
            features,
            binding,
            cooperative: Cooperative::of(adapter),
            device,
            queue,
            pool: Pool::default(),
            pipelines: Mutex::default(),
            recorder: Mutex::default(),
            decoded: Mutex::default(),
            fault,
            tell,
        })
    }

    /// Whether its memory is the processor's.
    pub fn is_unified(&self) -> bool {
        matches!(self.info.device_type, wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Cpu)
    }

    /// Whether it is a program on the processor.
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// An error of this device.
    pub(super) fn error(&self, problem: impl Into<String>) -> Error {
        Error::Device { device: self.info.name.clone(), problem: problem.into() }
    }

    /// Whether all went well so far.
    ///
    /// # Errors
    /// [`Error::Device`] with the first thing that did not.
    pub(super) fn check(&self) -> Result<()> {
        match &*lock(&self.fault) {
            Some(fault) => Err(self.error(fault.problem.clone())),
            None => Ok(()),
        }
    }

    /// Takes note of what went wrong where it can't be said at once.
    pub(crate) fn fail(&self, problem: impl Into<String>) {
        lock(&self.fault).get_or_insert(Fault { problem: problem.into(), lost: false });
    }

    /// Whether it is gone.
    pub(super) fn is_lost(&self) -> bool {
        matches!(&*lock(&self.fault), Some(Fault { lost: true, .. }))
    }

    /// Gives memory back, forgets what was recorded and, unless the device is gone, what went wrong.
    pub(crate) fn recover(&self) {
        *lock(&self.recorder) = Recorder::default();
        self.pool.clear();
        self.wait();
        if !self.is_lost() {
            *lock(&self.fault) = None;
        }
    }

    /// Whether it was not asked this about a format before.
    pub(super) fn is_new(&self, format: &str) -> bool {
        lock(&self.decoded).insert(format.to_owned())
    }

    /// Whether it multiplies with cooperative matrices.
    pub fn is_cooperative(&self) -> bool {
        self.cooperative.f32 || self.cooperative.f16
    }

    /// Whether kernels can compute in half precision.
    pub fn has_halves(&self) -> bool {
        self.features.contains(Features::SHADER_F16)
    }

    /// A small buffer with these bytes, for kernels to read.
    pub(super) fn constant(&self, bytes: &[u8]) -> Buffer {
        let (contents, usage) = (bytes, BufferUsages::STORAGE);
        let pad;
        let contents = if contents.is_empty() {
            pad = [0; 16];
            &pad
        } else {
            contents
        };
        self.device.create_buffer_init(&wgpu::util::BufferInitDescriptor { label: None, contents, usage })
    }

    /// Runs a kernel: `bindings` in the order of their numbers, `params` as its struct of parameters.
    pub(super) fn run(&self, shader: &Shader, bindings: &[Binding], params: &[u32], groups: [u32; 3]) {
        if groups.contains(&0) {
            return;
        }
        let pipeline = self.pipeline(shader, bindings);
        let entries: Vec<wgpu::BindGroupEntry> = (0..)
            .zip(bindings)
            .map(|(binding, bound)| {
                let (buffer, range, _) = bound.parts();
                let size = wgpu::BufferSize::new(range.end - range.start);
                let resource =
                    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: range.start, size });
                wgpu::BindGroupEntry { binding, resource }
            })
            .collect();
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.bindings,
            entries: &entries,
        });
        self.record(|encoder| {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&pipeline.pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.set_immediates(0, bytemuck::cast_slice(params));
            pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
        });
    }

    /// Records commands, and hands them over with others.
    pub(super) fn record(&self, commands: impl FnOnce(&mut wgpu::CommandEncoder)) {
        let mut recorder = lock(&self.recorder);
        commands(
            recorder.encoder.get_or_insert_with(|| self.device.create_command_encoder(&Default::default())),
        );
        recorder.dispatches += 1;
        if recorder.dispatches >= BATCH {
            self.submit(&mut recorder);
        }
    }

    fn pipeline(&self, shader: &Shader, bindings: &[Binding]) -> Arc<Pipeline> {
        if let Some(known) = lock(&self.pipelines).get(&shader.name) {
            return known.clone();
        }
        let source = wgpu::ShaderSource::Wgsl(shader.text.as_str().into());
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(&shader.name), source };
        // SAFETY: every kernel stays within what is bound for it by its parameters and its weights' format, whatever the weights'
        // bytes are, and has no loop without an end.
        let module = unsafe {
            self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        };
        let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..)
            .zip(bindings)
            .map(|(binding, bound)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: bound.parts().2 },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = wgpu::BindGroupLayoutDescriptor { label: Some(&shader.name), entries: &entries };
        let bindings = self.device.create_bind_group_layout(&layout);
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&shader.name),
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: IMMEDIATES,
        });
        let options = wgpu::PipelineCompilationOptions {
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&shader.name),
            layout: Some(&layout),
            module: &module,
            entry_point: None,
            compilation_options: options,
            cache: None,
        });
        let made = Arc::new(Pipeline { pipeline, bindings });
        lock(&self.pipelines).entry(shader.name.clone()).or_insert(made).clone()
    }

    fn submit(&self, recorder: &mut Recorder) {
        if let Some(encoder) = recorder.encoder.take() {
            self.queue.submit([encoder.finish()]);
        }
        recorder.dispatches = 0;
    }

    /// Hands over what was recorded.
    pub(super) fn flush(&self) {
        self.submit(&mut lock(&self.recorder));
    }

    /// Takes note of an upload, and waits for the device if there is much on its way.
    pub(super) fn uploaded(&self, bytes: u64) {
        let mut recorder = lock(&self.recorder);
        recorder.uploaded += bytes;
        if recorder.uploaded > IN_FLIGHT {
            self.submit(&mut recorder);
            recorder.uploaded = 0;
            drop(recorder);
            self.wait();
        }
    }

    fn wait(&self) {
        if let Err(error) = self.device.poll(wgpu::PollType::wait_indefinitely()) {
            self.fail(error.to_string());
        }
    }

    /// Reads a buffer's first values, once all that was recorded is done.
    ///
    /// # Errors
    /// [`Error::Device`] if that, or anything before it, went wrong.
    pub(super) fn read(&self, buffer: &Buffer, bytes: u64) -> Result<Vec<f32>> {
        let mut values = vec![0.0f32; bytes as usize / 4];
        // In pieces, so that what is copied through stays small.
        let piece = self.binding.min(256 << 20).min(bytes.max(4));
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let staging = self.pool.take(&self.device, piece, usage);
        for first in (0..bytes).step_by(piece as usize) {
            let len = piece.min(bytes - first);
            {
                let mut recorder = lock(&self.recorder);
                let encoder = recorder
                    .encoder
                    .get_or_insert_with(|| self.device.create_command_encoder(&Default::default()));
                encoder.copy_buffer_to_buffer(buffer, first, &staging, 0, len);
                self.submit(&mut recorder);
                recorder.uploaded = 0;
            }
            let mapped = Arc::new(Mutex::new(None));
            let result = mapped.clone();
            staging.map_async(wgpu::MapMode::Read, ..len, move |mapped| *lock(&result) = Some(mapped));
            self.wait();
            self.check()?;
            match lock(&mapped).take() {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(self.error(format!("can't be read back: {error}"))),
                None => return Err(self.error("did not answer")),
            }
            let view = staging.get_mapped_range(..len).map_err(|error| self.error(error.to_string()))?;
            let out = &mut bytemuck::cast_slice_mut(&mut values)[first as usize..][..len as usize];
            out.copy_from_slice(&view);
            drop(view);
            staging.unmap();
        }
        self.pool.give(staging, usage);
        Ok(values)
    }
}

# services.castore-fs.guest: inside a virtual machine, what a castore-fs on its host serves over
# virtiofs, or shows as an image. Nothing of castore-fs runs here; the kernel has all of it.
#
# On the host: `services.castore-fs.virtiofs.<name>`, and a virtual machine whose memory is shared and
# that has a vhost-user-fs device on that socket; docs/nixos.md has the lines.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:

let
  inherit (lib) mkOption types;
  cfg = config.services.castore-fs.guest;

  disk = "/nix/.castore-upper";

  byImage = cfg.store == "pmem";

  # The keys of every entry. Nothing waits for a virtiofs device: it exists before the kernel runs.
  fileSystems = {
    ${cfg.mountPoint} = {
      device = if byImage then cfg.device else cfg.tag;
      fsType = if byImage then "erofs" else "virtiofs";
      options = [
        "ro"
        "nodev"
        "nosuid"
      ]
      ++ lib.optional byImage "dax=always";
      noCheck = true;
      neededForBoot = cfg.nixStore.enable;
    };
  }
  // lib.optionalAttrs cfg.nixStore.enable (
    {
      "/nix/store" = {
        overlay = {
          lowerdir = [ cfg.mountPoint ];
          upperdir = "${disk}/upper";
          workdir = "${disk}/work";
        };
        neededForBoot = true;
      };
    }
    // lib.optionalAttrs (cfg.nixStore.upper == "memory") {
      ${disk} = {
        device = "tmpfs";
        fsType = "tmpfs";
        options = [ "mode=0755" ];
        neededForBoot = true;
      };
    }
  );
in
{
  options.services.castore-fs.guest = {
    enable = lib.mkEnableOption "a mount of what the host's castore-fs serves";

    store = mkOption {
      type = types.enum [
        "virtiofs"
        "pmem"
      ];
      default = "virtiofs";
      description = ''
        How the host gives it to this machine: by a vhost-user-fs device, or as an image in a virtio-pmem
        device, which is read in place. docs/images.md describes which to choose.
      '';
    };

    device = mkOption {
      type = types.str;
      default = "/dev/pmem0";
      description = "The block device of the image, with `store = \"pmem\"`.";
    };

    tag = mkOption {
      type = types.str;
      default = "castore";
      description = "The tag of the virtual machine's vhost-user-fs device.";
    };

    mountPoint = mkOption {
      type = types.str;
      default = "/nix/.castore";
      description = "Where to mount it.";
    };

    nixStore = {
      enable = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Whether it is this machine's Nix store, from the initial ramdisk on. The roots that the
          host serves are then the store paths of the machine's system, and `regInfo=PATH` on the
          kernel's command line, as microvm.nix and nixpkgs' test machines have it, says where the
          registration of these paths is: with it this machine's Nix knows them. On the host
          {option}`services.castore-fs.virtiofs.<name>.closure` sees to both.
        '';
      };

      upper = mkOption {
        type = types.enum [
          "memory"
          "disk"
        ];
        default = "memory";
        description = ''
          Where store paths go that the machine adds itself: into memory, gone with the machine, or
          to {file}`${disk}` on its own disk.
        '';
      };
    };
  };

  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      {
        inherit fileSystems;
        boot.initrd.availableKernelModules = [
          "overlay"
          "virtio_pci"
        ]
        ++ (
          if byImage then
            [
              "erofs"
              "nd_pmem"
              "virtio_pmem"
            ]
          else
            [ "virtiofs" ]
        );
        boot.initrd.kernelModules = lib.optionals byImage [
          "nd_pmem"
          "virtio_pmem"
        ];
        assertions = [
          {
            assertion = cfg.nixStore.enable -> cfg.mountPoint != "/nix/store";
            message = "services.castore-fs.guest: with `nixStore.enable` the mount is layered below /nix/store, so it has to be elsewhere. Leave `mountPoint` out.";
          }
        ];
      }
      (lib.mkIf cfg.nixStore.enable {
        # Without it Nix takes every path of the system for garbage, even with references to it. Hence before
        # whatever may collect.
        systemd.services.castore-fs-registration = {
          description = "Load what Nix has to know of the store paths of this machine";
          wantedBy = [ "multi-user.target" ];
          before = [
            "nix-daemon.service"
            "nix-daemon.socket"
            "nix-gc.service"
            "nix-optimise.service"
          ];
          requiredBy = [ "nix-gc.service" ];
          unitConfig.DefaultDependencies = false;
          after = [ "local-fs.target" ];
          conflicts = [ "shutdown.target" ];
          path = [ config.nix.package ];
          script = "${pkgs.runtimeShell} ${./load-registration.sh}";
          serviceConfig = {
            Type = "oneshot";
            RemainAfterExit = true;
          };
        };
      })
      # nixpkgs' test machines take their file systems from here and from nowhere else.
      (lib.optionalAttrs (options ? virtualisation.fileSystems) {
        virtualisation = { inherit fileSystems; };
      })
    ]
  );
}

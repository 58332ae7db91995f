# One of `services.castore-fs.stores`: where it is, or what it is made of.
{ lib, ... }:

let
  inherit (lib) mkOption types;

  optional =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };
  made = options: types.nullOr (types.submodule { inherit options; });
  credential = "The name in {option}`services.castore-fs.credentials` of";
in
{
  options = {
    url = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "grpc+https://castore.example.org";
      description = ''
        Where it is. A store has this, or one of `cache`, `binaryCache`, `mirrors`, `filter` and `join`,
        which make it of others.
      '';
    };

    credential = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "upstream";
      description = ''
        ${credential} what the store's server asks for: the bearer token of a gRPC server; for one in
        an object store, a file as the cloud's own tools have it (for S3 the `credentials` file, with
        `aws_access_key_id` and `aws_secret_access_key`); the bearer token of a binary cache.
      '';
    };

    tls = {
      authorities = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = lib.literalExpression "./castore-ca.pem";
        description = "Certificate authorities (PEM) to trust for `grpc+https` instead of the system's.";
      };
      certificate = optional types.str "${credential} the certificate (PEM) that is shown to a `grpc+https` server.";
      key = optional types.str "${credential} that certificate's key (PEM).";
    };

    cache = mkOption {
      type = made {
        near = mkOption {
          type = types.str;
          example = "cached";
          description = "Where it is kept: the name of a store whose URL is `local:/PATH`.";
        };
        far = mkOption {
          type = types.listOf types.str;
          example = [ "upstream" ];
          description = ''
            What is read: the names of one store, or of several that hold the same, best first.
          '';
        };
        size = optional types.str "How much the cache may take on its disk, as in `200GiB`; null for as much as there is.";
        keepFree = optional types.str "How much stays free on that disk, regardless of `size`.";
        rootsMaxAge = optional types.str "How long the upstream's answer for a root's name holds; null for the daemon's `60s`.";
      };
      default = null;
      example = {
        near = "cached";
        far = [ "upstream" ];
        size = "200GiB";
        keepFree = "10GiB";
      };
      description = "What is read of other stores stays in a local one, across restarts.";
    };

    binaryCache = mkOption {
      type = made {
        url = mkOption {
          type = types.either types.str (types.listOf types.str);
          example = "https://cache.nixos.org";
          description = "Where it is; several are asked in the order of their priorities.";
        };
        into = mkOption {
          type = types.str;
          example = "cached";
          description = "What its paths are unpacked into: the name of a store whose URL is `local:/PATH`.";
        };
        trustedPublicKeys = mkOption {
          type = types.listOf types.str;
          default = [ ];
          example = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
          description = "Public keys by one of which a path has to be signed, unless it is content-addressed.";
        };
        requireSignatures = optional types.bool "Whether a path needs such a signature; null for `true`.";
        closure = optional (types.enum [
          "fetch"
          "narinfos"
          "off"
        ]) "What is fetched ahead of the paths that a path refers to; null for `fetch`, narinfos and NARs.";
        netrc = optional types.str "${credential} a netrc(5) file with login and password.";
        size = optional types.str "How much the local store may take on its disk; null for as much as there is.";
        keepFree = optional types.str "How much stays free on that disk, regardless of `size`.";
      };
      default = null;
      example = {
        url = "https://cache.nixos.org";
        into = "cached";
        trustedPublicKeys = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
      };
      description = "Nix binary caches, whose paths are unpacked into a local store as they are looked up.";
    };

    mirrors = mkOption {
      type = made {
        of = mkOption {
          type = types.listOf types.str;
          example = [
            "nearby"
            "upstream"
          ];
          description = "The names of the stores, best first.";
        };
        order =
          optional
            (types.enum [
              "listed"
              "fastest"
              "racing"
            ])
            ''
              The member that is asked first: the first of the list as long as it is healthy (`listed`, which null means),
              the one that has been answering fastest, or all at once.
            '';
      };
      default = null;
      description = "Several stores that hold the same, for when one of them fails or is slow.";
    };

    filter = mkOption {
      type = made {
        store = mkOption {
          type = types.str;
          description = "The name of the store.";
        };
        roots = mkOption {
          type = types.listOf types.str;
          example = [ "app-*" ];
          description = ''
            Patterns of names: `*` any bytes, `?` one byte, `[a-z]` one of these, `{a,b}` a or b.
          '';
        };
      };
      default = null;
      description = "Some roots of another store, by name.";
    };

    join = mkOption {
      type = types.nullOr (types.listOf types.str);
      default = null;
      example = [
        "disk"
        "upstream"
      ];
      description = ''
        Several stores as one, by their names: of roots with the same name the first store's is
        seen.
      '';
    };

    settings = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      description = "Further keys of this store in the daemon's file.";
    };
  };
}
